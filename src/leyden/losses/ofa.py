"""Distillation between unlike architectures (Z. Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous
Architectures in Knowledge Distillation" (OFA-KD), 2023, arXiv 2310.19444; authors' code: Hao840/OFAKD)."""

from torch import Tensor, nn
from torch.nn import functional

from leyden.losses._pairs import check_rows, check_temperature, log_probabilities, probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["OFA", "ofa_loss"]


def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """``-sum_c ((q_c + m_c)^eps - m_c) log p_c``: cross entropy to the teacher with more weight on the true class.

    There p and q are the softened outputs of student and teacher, and m is one for the true class and else zero. With
    eps 1 the target has no effect. The square of the temperature is left out, as the authors do.

    Args:
        student_logits: ``[N, C]``; those of a projected inner layer, or of the network.
        teacher_logits: ``[N, C]``; the caller detaches them.
        target: class numbers, int64 ``[N]``, or probabilities ``[N, C]``, of which the largest counts.
        eps: above 1 the true class has more weight; below 1 improbable classes have.
        temperature: T.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: ``eps`` or ``temperature`` is not positive, or the shapes do not fit; or another ``reduction``.
    """
    _check(eps, temperature)
    check_rows(student_logits, teacher_logits)
    if target is None or target.shape not in (student_logits.shape, student_logits.shape[:1]):
        got = "None" if target is None else tuple(target.shape)
        raise ValueError(f"target must be [N] or [N, C] as student_logits {tuple(student_logits.shape)}, got {got}")
    classes = target if target.ndim == 1 else target.argmax(-1)
    teacher = probabilities(teacher_logits, temperature)
    true = functional.one_hot(classes, teacher.shape[-1]).to(teacher.dtype)
    weights = (teacher + true).pow(eps) - true
    return reduce_loss(-(weights * log_probabilities(student_logits, temperature)).sum(-1), reduction)


class OFA(nn.Module):
    """Module twin of `ofa_loss`."""

    def __init__(self, *, eps: float = 1.0, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(eps, temperature)
        self.eps, self.temperature, self.reduction = eps, temperature, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return ofa_loss(
            student_logits,
            teacher_logits,
            target,
            eps=self.eps,
            temperature=self.temperature,
            reduction=self.reduction,
        )


def _check(eps: float, temperature: float) -> None:
    check_temperature(temperature)
    if not eps > 0.0:
        raise ValueError(f"eps must be positive, got {eps}")
