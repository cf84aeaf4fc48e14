"""Prune and combine: easy samples, several of them in one image.

From "Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images" (2025, arXiv 2502.06434). How
many images the paper puts into one, and in which order, is not published as code (unverified): the factor is an
argument, neighbours are neighbours by score.
"""

import torch
from torch import Tensor

__all__ = ["combine_grid", "prune_by_score"]


def prune_by_score(scores: Tensor, targets: Tensor, per_class: int, *, keep: str = "low") -> Tensor:
    """Chooses samples of each class by their score.

    Args:
        scores: ``[S]``, low for easy samples.
        targets: class numbers, int64 ``[S]``.
        per_class: number of samples of each class; all of a class that has fewer.
        keep: ``"low"`` or ``"high"`` scores.

    Returns:
        Positions, int64 ``[K]``: class by class, the best first; of equal scores the earlier one.

    Raises:
        ValueError: a score is NaN, the lengths differ, or a number or ``keep`` is out of range.
    """
    if keep not in ("low", "high"):
        raise ValueError(f"keep must be 'low' or 'high', got {keep!r}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    if scores.shape != targets.shape or scores.ndim != 1:
        raise ValueError(
            f"scores and targets must be of one length, got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"scores must be numbers, got {int(scores.isnan().sum())} NaN")
    order = scores.argsort(stable=True, descending=keep == "high")
    parts = [order[targets[order] == number][:per_class] for number in targets.unique().tolist()]
    return torch.cat(parts) if parts else order


def combine_grid(images: Tensor, factor: int = 2) -> Tensor:
    """Puts ``factor * factor`` images, each made smaller by the mean over its pixels, into one.

    Args:
        images: ``[n * factor^2, C, H, W]`` floating point; the first ``factor^2`` make the first result, row by row.
        factor: in each direction; 1 leaves the images as they are.

    Returns:
        ``[n, C, H, W]``.

    Raises:
        ValueError: their number, or H or W, cannot be divided.
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating point [N, C, H, W], got {images.dtype} {tuple(images.shape)}")
    count, channels, height, width = images.shape
    if count % factor**2 or height % factor or width % factor:
        raise ValueError(
            f"images must be a multiple of {factor**2}, and their sides of {factor}, got {tuple(images.shape)}"
        )
    small = images.view(-1, channels, height // factor, factor, width // factor, factor).mean((3, 5))
    grid = small.view(-1, factor, factor, channels, height // factor, width // factor)  # [n, row, column, C, h, w]
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
