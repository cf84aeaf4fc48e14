"""Which samples without labels to learn from (C. Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network
Distillation Alternative to Improve Backbones" (SSLD), 2021, arXiv 2103.05959)."""

import torch
from torch import Tensor

__all__ = ["select_by_confidence"]


def select_by_confidence(probs: Tensor, *, per_class: int, min_confidence: float = 0.0) -> Tensor:
    """Of each class, the samples of which a teacher says most surely that they belong to it.

    Args:
        probs: of a teacher, ``[N, C]``; a sample belongs to its most probable class, of equal ones to the first.
        per_class: samples of a class, at most.
        min_confidence: leave out samples whose most probable class has less.

    Returns:
        Their positions, int64 ``[K]``, ascending; of samples that are equally sure the first are taken.

    Raises:
        ValueError: ``probs`` is not ``[N, C]`` or has NaN, or ``per_class`` is below 1.
    """
    if probs.ndim != 2 or probs.isnan().any():
        raise ValueError(f"probs must be [N, C] without NaN, got {tuple(probs.shape)}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    confidence, classes = probs.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)  # of each sample among those of its class
    for label in classes.unique():
        members = order[classes[order] == label]
        rank[members] = torch.arange(len(members), device=rank.device)
    return torch.nonzero((rank < per_class) & (confidence >= min_confidence))[:, 0]
