"""Essential sparsity (A. Jaiswal, S. Liu, T. Chen, Z. Wang, "The Emergence of Essential Sparsity in Large Pre-trained
Models: The Weights that Matter", 2023, arXiv 2306.03805, section 3): how much can be pruned at no cost."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["essential_sparsity"]


def essential_sparsity(
    sparsities: Sequence[float] | Tensor, scores: Sequence[float] | Tensor, *, tolerance: float = 0.01
) -> Tensor:
    """The largest sparsity up to which every score lies at most ``tolerance`` below that of the dense network.

    Args:
        sparsities: shares of zeros, increasing from 0, ``[G]``.
        scores: more is better, ``[G]``; for a perplexity or a loss its negative.
        tolerance: loss of the score that counts as none; the paper takes 1 % of accuracy.

    Returns:
        float32, ``[]``; 0 if no pruned network is as good.

    Raises:
        ValueError: the numbers differ, ``sparsities`` do not increase from 0, or ``tolerance`` is negative.
    """
    grid, values = torch.as_tensor(sparsities).float(), torch.as_tensor(scores).double()
    if grid.ndim != 1 or grid.shape != values.shape or len(grid) == 0:
        raise ValueError(f"scores must be as many as sparsities, got {tuple(values.shape)} and {tuple(grid.shape)}")
    if grid[0] != 0.0 or (grid.diff() <= 0.0).any():
        raise ValueError(f"sparsities must increase from 0, got {grid.tolist()}")
    if not tolerance >= 0.0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    good = values >= values[0] - tolerance
    return grid[int(good.long().cumprod(0).sum()) - 1]
