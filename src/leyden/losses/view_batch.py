"""View-batch self-supervision (H. Kang, G. Seifer, D. Lee, J. Ryu, "Do Your Best and Get Enough Rest for Continual
Learning", CVPR 2025, arXiv 2503.18371, section 3.3: the one-to-many divergence)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses._pairs import log_probabilities

__all__ = ["ViewBatchLoss", "view_batch_loss"]


def view_batch_loss(logits: Tensor, group: Tensor, *, reduction: str = "mean") -> Tensor:
    """Divergence of the other views of a sample from its first, ``KL(softmax(first) || softmax(other))``.

    The first view gets no gradient. The authors' code (hankyul2/ViewBatchModel) divides by C once more, being a mean
    over all entries, and takes neighbours of one class for views of one sample.

    Args:
        logits: scores, ``[N, C]``.
        group: which rows are views of one sample, ``[N]``, int64: the ``index`` of a batch.
        reduction: ``"mean"`` over the other views (0 where there are none), or ``"sum"``.

    Raises:
        ValueError: the shapes do not fit, or another ``reduction``.
    """
    if logits.ndim != 2 or group.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [N, C] and group [N], got shapes {tuple(logits.shape)} and {tuple(group.shape)}"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if not len(group):
        return logits.sum()
    first = (group.unsqueeze(1) == group).int().argmax(1)  # [N]: the first row of the same group
    other = first != torch.arange(len(group), device=group.device)
    log_p = log_probabilities(logits)
    target = log_p.detach()[first]
    divergence = functional.kl_div(log_p, target, reduction="none", log_target=True)  # [N, C]
    divergence = divergence.masked_fill(target == -torch.inf, 0.0)  # classes that are masked out of the scores
    total = (divergence.sum(-1) * other).sum()
    return total / other.sum().clamp(min=1) if reduction == "mean" else total


class ViewBatchLoss(nn.Module):
    """Module twin of `view_batch_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, group: Tensor) -> Tensor:
        """Returns the loss."""
        return view_batch_loss(logits, group, reduction=self.reduction)
