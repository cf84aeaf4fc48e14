"""Choosing among the instances of bags of several sizes, without waiting for a GPU."""

import torch
from torch import Tensor

__all__ = ["smallest"]


def smallest(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Whether each instance is among the smallest of its bag; the earlier of equal ones is.

    Args:
        values: ``[B, N]``; or of several heads ``[B, H, N]``, of which each has ``count`` votes: those with most votes
            are chosen.
        mask: which can be chosen, bool ``[B, N]``.
        count: how many are, ``[B]``; at most as many as can be.

    Returns:
        bool ``[B, N]``.
    """
    if values.ndim == 3:
        heads = values.shape[1]
        chosen = smallest(values.flatten(0, 1), mask.repeat_interleave(heads, 0), count.repeat_interleave(heads))
        values = -chosen.unflatten(0, (-1, heads)).sum(1)
    values = torch.where(mask, values.double(), torch.inf)
    return values.argsort(dim=-1, stable=True).argsort(dim=-1) < count.unsqueeze(-1)
