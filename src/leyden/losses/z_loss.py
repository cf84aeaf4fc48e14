"""Auxiliary z-loss (A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5; M. Wortsman
et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv 2309.14322, section
3.1.2): keeps the normaliser of the output softmax near 1, so that logits do not drift away from log-probabilities."""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["ZLoss", "z_loss"]


def z_loss(logits: Tensor, mask: Tensor | None = None, *, weight: float = 1e-4, reduction: str = "mean") -> Tensor:
    """``weight * log(Z)^2``, where Z is the sum of ``exp(logits)`` over classes.

    Args:
        logits: scores before softmax, ``[..., C]``; the logarithm is taken in float32 at least.
        mask: bool ``[...]``, True at the positions that count, all if None; those that do not are 0 and are not in
            the mean.
        weight: factor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[...]``).

    Raises:
        ValueError: the mask has another shape, ``weight`` is negative, or another ``reduction``.
    """
    if weight < 0.0:
        raise ValueError(f"weight must be at least 0, got {weight}")
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise ValueError(f"mask must have the shape {tuple(logits.shape[:-1])}, got {tuple(mask.shape)}")
    values = weight * logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1).square()
    if mask is None:
        return reduce_loss(values, reduction)
    values = values.masked_fill(~mask, 0.0)
    return values.sum() / mask.sum().clamp(min=1) if reduction == "mean" else reduce_loss(values, reduction)


class ZLoss(nn.Module):
    """Module twin of `z_loss`."""

    def __init__(self, *, weight: float = 1e-4, reduction: str = "mean") -> None:
        super().__init__()
        self.weight, self.reduction = weight, reduction

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the loss."""
        return z_loss(logits, mask, weight=self.weight, reduction=self.reduction)
