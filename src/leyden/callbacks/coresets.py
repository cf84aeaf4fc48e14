"""Coresets of mini-batches (D. Nguyen, W. Yang, R. Anand, Y. Yang, B. Mirzasoleiman, "Mini-batch Coresets for
Memory-efficient Language Model Training on Data Mixtures", 2024, arXiv 2407.19580; authors' code: BigML-CS-UCLA/CoLM,
``facility_location.py`` and ``subset_trainer_distributed.py``)."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "adam_directions",
    "coreset_by_source",
    "facility_location",
    "l1_similarity",
    "source_quota",
    "sparsify_by_source",
]


def l1_similarity(x: Tensor) -> Tensor:
    """Returns the largest L1 distance between two rows minus their own, ``[n, n]``, in float32 at least.

    Rows that are not finite are not finite to all either, and count for no distance.

    Args:
        x: ``[n, D]``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    distance = torch.cdist(x, x, p=1)
    return distance.nan_to_num(posinf=0.0).max() - distance


def facility_location(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Chooses points one by one, each such that ``sum_i max_j similarity[i, j]`` over the chosen j grows most.

    Of equal gains, as two points have that are each other's nearest, the first point is taken, and rounding does not
    count as a difference; the authors' lazy greedy takes any. A point whose similarity to itself is not finite is taken
    last.

    Args:
        similarity: ``[n, n]``.
        k: number of points to choose.

    Returns:
        Positions ``[k]``, int64, in the order of the choice, and how many points each stands for, int64 ``[k]``: those
        that are most similar to it, of which a chosen point is its own.

    Raises:
        ValueError: ``similarity`` is not square, or ``k`` is out of range.
    """
    n = len(similarity)
    if similarity.shape != (n, n):
        raise ValueError(f"similarity must be [n, n], got {tuple(similarity.shape)}")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie in 0..{n} (the points), got {k}")
    if not k:
        none = torch.zeros(0, dtype=torch.int64, device=similarity.device)
        return none, none
    invalid = ~similarity.diagonal().isfinite()
    similarity = similarity.nan_to_num(0.0, 0.0, 0.0)
    nearest = similarity.min().expand(n)  # [n], to what is chosen so far
    rounding = torch.finfo(similarity.dtype).eps ** 0.5 * (similarity.max() - similarity.min())
    taken = torch.zeros_like(invalid)
    positions = []
    for _ in range(k):
        gain = (similarity - nearest.unsqueeze(1)).clamp(min=0.0).sum(0)  # [n]
        gain = gain.masked_fill(invalid, torch.finfo(gain.dtype).min).masked_fill(taken, -torch.inf)
        best = (gain >= gain.max() - rounding).int().argmax(keepdim=True)
        taken = taken.index_fill(0, best, True)
        nearest = torch.maximum(nearest, similarity.index_select(1, best).squeeze(1))
        positions.append(best)
    chosen = torch.cat(positions)
    owner = similarity[:, chosen].argmax(1)
    owner[chosen] = torch.arange(k, device=owner.device)
    return chosen, owner.bincount(minlength=k)


def source_quota(counts: Sequence[int], k: int) -> list[int]:
    """Shares ``k`` among sources in proportion to their counts.

    All shares are rounded down; what is left goes to the sources with the smallest shares, one each.

    Args:
        counts: samples of each source.
        k: number to share.

    Raises:
        ValueError: there are fewer than ``k`` samples.
    """
    total = sum(counts)
    if not 0 <= k <= total:
        raise ValueError(f"k must lie in 0..{total} (the samples), got {k}")
    quota = [count * k // max(total, 1) for count in counts]
    smallest = sorted((s for s, count in enumerate(counts) if quota[s] < count), key=quota.__getitem__)
    for source in smallest[: k - sum(quota)]:
        quota[source] += 1
    return quota


def coreset_by_source(x: Tensor, sources: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Chooses ``k`` rows by `facility_location` on `l1_similarity`, in each source as many as `source_quota` says.

    Args:
        x: ``[n, D]``.
        sources: number of each row's source, int64 ``[n]``; None for one source.
        k: number of rows.

    Returns:
        Positions ``[k]``, by source, and how many rows of its source each stands for, int64 ``[k]``.

    Raises:
        ValueError: there are fewer than ``k`` rows.
    """
    rows = _rows_by_source(x, sources)
    quota = source_quota([len(members) for members in rows], k)
    chosen, weights = [], []
    for members, number in zip(rows, quota, strict=True):
        if number == len(members):
            chosen.append(members)
            weights.append(torch.ones_like(members))
        else:
            positions, stands_for = facility_location(l1_similarity(x[members]), number)
            chosen.append(members[positions])
            weights.append(stands_for)
    return torch.cat(chosen), torch.cat(weights)


def sparsify_by_source(x: Tensor, sources: Tensor | None, dim: int) -> Tensor:
    """Keeps, for each source, the columns in which the mean of its rows is largest in magnitude.

    Args:
        x: ``[n, D]``.
        sources: number of each row's source, int64 ``[n]``; None for one source.
        dim: number of columns to keep; all if there are fewer.

    Returns:
        ``[n, min(dim, D)]``; rows of different sources have different columns of ``x``.

    Raises:
        ValueError: ``dim`` is below 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if dim >= x.shape[1]:
        return x
    kept = x.new_empty(len(x), dim)
    for members in _rows_by_source(x, sources):
        part = x[members]
        kept[members] = part[:, part.mean(0).abs().topk(dim).indices]
    return kept


def adam_directions(
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the direction in which Adam would go by each of several gradients alone, and its two means after it.

    Args:
        grads: gradients, ``[n, D]``.
        exp_avg: mean of the gradients so far, ``[D]``.
        exp_avg_sq: mean of their squares, ``[D]``.
        step: number of steps so far.
        betas: decay rates of the two means.
        eps: added to the root of the second mean.

    Returns:
        Directions, first and second means, ``[n, D]`` each.
    """
    exp_avg = betas[0] * exp_avg + (1.0 - betas[0]) * grads
    exp_avg_sq = betas[1] * exp_avg_sq + (1.0 - betas[1]) * grads.square()
    corrected = exp_avg / (1.0 - betas[0] ** (step + 1))
    size = (exp_avg_sq / (1.0 - betas[1] ** (step + 1))).sqrt()
    return corrected / (size + eps), exp_avg, exp_avg_sq


def _rows_by_source(x: Tensor, sources: Tensor | None) -> list[Tensor]:
    """Positions of the rows of each source, in the order of the sources' numbers."""
    if sources is None:
        return [torch.arange(len(x), device=x.device)]
    if sources.shape != x.shape[:1]:
        raise ValueError(f"sources must have one number per row, {len(x)}, got shape {tuple(sources.shape)}")
    order = sources.argsort(stable=True)
    return list(order.split(sources.unique(return_counts=True)[1].tolist()))
