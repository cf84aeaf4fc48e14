"""Distances between all rows of one tensor and all rows of another."""

import torch
from torch import Tensor

__all__ = ["squared_distances"]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances, exact also for rows that are near each other, and twice differentiable.

    Args:
        x: ``[N, D]``, float32 or float64.
        y: ``[M, D]``.

    Returns:
        ``[N, M]``; where there is a gradient it takes memory for ``N * M * D`` numbers.
    """
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return (x.unsqueeze(1) - y).square().sum(-1)  # cdist has no second derivative
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
