"""Soft targets (G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531,
section 2)."""

from torch import Tensor, nn
from torch.nn import functional

from leyden.losses._pairs import check_pair, check_temperature, log_probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["KD", "kd_loss"]


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, reduction: str = "mean"
) -> Tensor:
    """Divergence of the softened outputs, ``T^2 KL(softmax(teacher / T) || softmax(student / T))``.

    Args:
        student_logits: ``[N, C]``, or ``[N, ..., C]`` with one divergence for each place.
        teacher_logits: of the same shape; the caller detaches them.
        temperature: T.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N, ...]``).

    Raises:
        ValueError: ``temperature`` is not positive, or the shapes differ; or another ``reduction``.
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return reduce_loss(temperature**2 * divergence, reduction)


class KD(nn.Module):
    """Module twin of `kd_loss`."""

    def __init__(self, *, temperature: float = 4.0, reduction: str = "mean") -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.reduction = temperature, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return kd_loss(student_logits, teacher_logits, temperature=self.temperature, reduction=self.reduction)
