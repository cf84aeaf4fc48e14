"""Distillation of several networks into one representation (J. Zhang, L. Bottou, "Learning useful representations for
shifting tasks and distributions", 2022, arXiv 2212.07346: DISTILL).

The student has a linear head per member, which are thrown away afterwards. In the authors' repository no code was
found for it; the form of the divergence and the factor of the temperature are those of Hinton et al. (2015)
(unverified).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leyden.losses.kd import kd_loss
from leyden.losses.reduction import reduce_loss

__all__ = ["MultiHeadDistillation", "multi_head_distillation_loss"]


def multi_head_distillation_loss(
    student_logits: Sequence[Tensor],
    member_logits: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Mean over heads of ``T^2 KL(softmax(member / T) || softmax(student / T))``.

    Args:
        student_logits: of each head, ``[N, C_i]``; the divergence is computed in float32 at least.
        member_logits: of the member that each head follows, ``[N, C_i]``; they get no gradient.
        temperature: T.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: ``temperature`` is not positive, there are no heads, or numbers or shapes differ; or another
            ``reduction``.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    shapes = [[tuple(logits.shape) for logits in side] for side in (student_logits, member_logits)]
    if not shapes[0] or shapes[0] != shapes[1] or any(len(shape) != 2 for shape in shapes[0]):
        raise ValueError(
            f"student_logits and member_logits must be the same number of [N, C], at least one, got {shapes[0]} and "
            f"{shapes[1]}"
        )
    total: Tensor | float = 0.0
    for student, member in zip(student_logits, member_logits, strict=True):
        total = total + kd_loss(student, member.detach(), temperature=temperature, reduction="none")
    return reduce_loss(torch.as_tensor(total) / len(shapes[0]), reduction)


class MultiHeadDistillation(nn.Module):
    """Module twin of `multi_head_distillation_loss`."""

    def __init__(self, *, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature, self.reduction = temperature, reduction

    def forward(self, student_logits: Sequence[Tensor], member_logits: Sequence[Tensor]) -> Tensor:
        """Returns the loss."""
        return multi_head_distillation_loss(
            student_logits, member_logits, temperature=self.temperature, reduction=self.reduction
        )
