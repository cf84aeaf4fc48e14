"""Decoupled knowledge distillation (B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation",
2022, arXiv 2203.08679, equation 7; authors' code: megvii-research/mdistiller).

The authors take the true class out by a logit of -1000; here it is left out exactly.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses._pairs import check_class_numbers, check_rows, check_temperature, softened
from leyden.losses.reduction import reduce_loss

__all__ = ["DKD", "dkd_loss"]


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    """``T^2`` times the divergence of "true class or not", and that among the other classes, weighted apart.

    Args:
        student_logits: ``[N, C]``, C at least 2.
        teacher_logits: ``[N, C]``; the caller detaches them.
        target: class numbers, int64 ``[N]``.
        alpha: weight of ``KL(b_teacher || b_student)``, where b has the probability of the true class and that of the
            rest.
        beta: weight of the divergence among the other classes, each side renormalised.
        temperature: T.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: ``temperature`` is not positive, or shapes differ, or ``target`` has no class numbers; or another
            ``reduction``.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    check_class_numbers(target, student_logits)
    student, teacher = (softened(logits, temperature) for logits in (student_logits, teacher_logits))
    true = functional.one_hot(target, student.shape[-1]).bool()  # [N, C]
    student_others, teacher_others = (side.masked_fill(true, -torch.inf) for side in (student, teacher))
    # logarithms of the mass of all classes, of the others and of the true one, not normalised: [N] each
    student_all, teacher_all = student.logsumexp(-1), teacher.logsumexp(-1)
    student_rest, teacher_rest = student_others.logsumexp(-1), teacher_others.logsumexp(-1)
    student_true, teacher_true = (side.gather(-1, target[:, None])[:, 0] for side in (student, teacher))
    shift = teacher_all - student_all
    binary = (teacher_true - teacher_all).exp() * (teacher_true - student_true - shift)
    binary = binary + (teacher_rest - teacher_all).exp() * (teacher_rest - student_rest - shift)
    others = (teacher_others.softmax(-1) * (teacher - student)).sum(-1) - (teacher_rest - student_rest)
    return temperature**2 * reduce_loss(alpha * binary + beta * others, reduction)


class DKD(nn.Module):
    """Module twin of `dkd_loss`."""

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.alpha, self.beta, self.temperature, self.reduction = alpha, beta, temperature, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return dkd_loss(
            student_logits,
            teacher_logits,
            target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            reduction=self.reduction,
        )
