"""Plackett-Luce distillation (E. Bassam, D. Zhu, K. Bian, "PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
2025, arXiv 2506.12542, appendix C)."""

import torch
from torch import Tensor, nn

from leyden.losses._pairs import check_class_numbers, check_rows, check_temperature, probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["PLD", "pld_loss"]


def pld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Cost of naming all classes in the teacher's order, the true one first, each weighted as the teacher believes it.

    It takes the place of cross entropy, which it is for a teacher that is certain of the true class. Of classes that
    the teacher thinks equal, the one of the lower number is named first.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``; order and weights get no gradient.
        target: class numbers, int64 ``[N]``.
        temperature: of the weights, ``softmax(teacher / T)``; the student's logits are taken as they are.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: ``temperature`` is not positive, or shapes differ, or ``target`` has no class numbers; or another
            ``reduction``.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    check_class_numbers(target, student_logits)
    teacher = teacher_logits.detach()
    order = teacher.scatter(-1, target[:, None], torch.inf).argsort(dim=-1, descending=True, stable=True)  # [N, C]
    weights = probabilities(teacher, temperature).gather(-1, order)
    scores = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32)).gather(-1, order)
    remaining = scores.flip(-1).logcumsumexp(-1).flip(-1)  # of this class and all that come after it
    return reduce_loss((weights * (remaining - scores)).sum(-1), reduction)


class PLD(nn.Module):
    """Module twin of `pld_loss`."""

    def __init__(self, *, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.reduction = temperature, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return pld_loss(student_logits, teacher_logits, target, temperature=self.temperature, reduction=self.reduction)
