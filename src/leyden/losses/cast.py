"""Loss of CAST (W. Huang et al., "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large
Language Models", 2025, arXiv 2509.25996): cross entropy and the outputs of the dense network."""

from torch import Tensor, nn
from torch.nn import functional

from leyden.losses.reduction import reduce_loss

__all__ = ["CastLoss", "cast_loss"]


def cast_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, eta: float = 1 / 3, reduction: str = "mean"
) -> Tensor:
    """``eta KL(teacher || student) + (1 - eta)`` cross entropy, both of the plain softmax.

    Args:
        student_logits: scores before softmax, ``[N, C]``.
        teacher_logits: those of the dense network, ``[N, C]``; get no gradient.
        target: class numbers, int64 ``[N]``, or soft targets ``[N, C]``.
        eta: share of the teacher, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, ``eta`` is out of range, or another ``reduction``.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits, {tuple(student_logits.shape)}, got "
            f"{tuple(teacher_logits.shape)}"
        )
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    student = student_logits.float() if student_logits.itemsize < 4 else student_logits
    log_p = student.log_softmax(-1)  # [N, C]
    log_q = teacher_logits.detach().to(student.dtype).log_softmax(-1)
    divergence = functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)  # [N]
    task = functional.cross_entropy(student, target, reduction="none")
    return reduce_loss(eta * divergence + (1.0 - eta) * task, reduction)


class CastLoss(nn.Module):
    """Module twin of `cast_loss`."""

    def __init__(self, *, eta: float = 1 / 3, reduction: str = "mean") -> None:
        super().__init__()
        self.eta, self.reduction = eta, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return cast_loss(student_logits, teacher_logits, target, eta=self.eta, reduction=self.reduction)
