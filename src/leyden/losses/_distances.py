"""Distances between all rows of one tensor and all rows of another."""

import torch
from torch import Tensor

__all__ = ["squared_distances"]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances ``[N, M]`` of the rows of ``x``, ``[N, D]``, and ``y``, ``[M, D]``."""
    # not by a product of matrices, which is of low precision for rows that are near each other
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
