"""Divergence of a diagonal normal distribution from the standard one, as variational bottlenecks have it (D. P. Kingma,
M. Welling, "Auto-Encoding Variational Bayes", 2013, arXiv 1312.6114, appendix B)."""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["GaussianKL", "gaussian_kl"]


def gaussian_kl(mean: Tensor, variance: Tensor, *, reduction: str = "sum") -> Tensor:
    """``KL(N(mean, variance) || N(0, 1)) = 0.5 sum_d (mean^2 + variance - log(variance) - 1)``.

    Args:
        mean: ``[..., D]``.
        variance: positive, ``[..., D]``; computed with in float32 at least.
        reduction: over the distributions, ``"sum"``, ``"mean"`` or ``"none"`` (gives ``[...]``).

    Raises:
        ValueError: the shapes differ, or another ``reduction``.
    """
    if mean.shape != variance.shape:
        raise ValueError(f"variance must have the shape of mean, {tuple(mean.shape)}, got {tuple(variance.shape)}")
    mean, variance = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (mean, variance))
    return reduce_loss(0.5 * (mean.square() + variance - variance.log() - 1.0).sum(-1), reduction)


class GaussianKL(nn.Module):
    """Module twin of `gaussian_kl`."""

    def __init__(self, *, reduction: str = "sum") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Returns the divergence."""
        return gaussian_kl(mean, variance, reduction=self.reduction)
