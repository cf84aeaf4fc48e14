"""TIES merging (P. Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023, arXiv 2306.01708).

Trimmed over the whole model, as the authors' code and that of DARE do; adapter libraries trim each tensor by itself.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from leyden.weights._states import Lazy, State, dtype_of, is_dtensor, unique_names
from leyden.weights.task_vectors import add_task_vectors, lazy_task_vector

__all__ = ["ties_merge"]

BITS = 16  # of a magnitude that are counted in one pass


def ties_merge(
    base: State,
    finetuned: Sequence[State],
    *,
    trim_rate: float = 0.8,
    scale: float = 1.0,
    exclude: Collection[str] = (),
) -> dict[str, Tensor]:
    """Adds the trimmed, sign-elected mean of task vectors to the base.

    The files are read several times, so that one entry of one model is in memory at a time: to find the magnitudes that
    are kept, to elect signs, and to merge.

    Args:
        base: state dict or reader; entries that are not floating point come from it.
        finetuned: state dicts or readers of the models.
        trim_rate: share of the smallest changes of each model that is dropped; the magnitude at the border stays.
        scale: of the merged task vector.
        exclude: names or ``fnmatch`` patterns of entries that stay as in the base.

    Raises:
        ValueError: names or shapes differ, there is no model, or ``trim_rate`` is outside of [0, 1].
    """
    if not finetuned:
        raise ValueError("finetuned must be at least one state dict, got none")
    deltas = [lazy_task_vector(model, base, exclude=exclude) for model in finetuned]
    return merge_task_vectors(base, deltas, trim_rate=trim_rate, scale=scale)


def merge_task_vectors(base: State, deltas: Sequence[State], *, trim_rate: float, scale: float) -> dict[str, Tensor]:
    """`ties_merge` of task vectors."""
    if not 0.0 <= trim_rate <= 1.0:
        raise ValueError(f"trim_rate must lie in [0, 1], got {trim_rate}")
    double = any(dtype_of(base, name) == torch.float64 for name in deltas[0])
    limits = [_kth_magnitude(delta, trim_rate, torch.float64 if double else torch.float32) for delta in deltas]
    trimmed = [
        Lazy(list(delta), partial(_trimmed, delta, limit), [delta]) for delta, limit in zip(deltas, limits, strict=True)
    ]
    signs = [_whole(_sum(trimmed, name)).sign().sum().double().cpu() for name in unique_names(trimmed[0])]
    majority = float(sum(signs, torch.zeros((), dtype=torch.float64)).sign())  # where a sum is exactly zero

    def merged(name: str) -> Tensor:
        sign = _sum(trimmed, name).sign_()
        sign[sign == 0] = majority
        total, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for vector in trimmed:
            value = vector[name]
            agrees = value * sign > 0
            total += torch.where(agrees, value, 0.0)
            count += agrees
        return total / count.clamp_(min=1.0)

    return add_task_vectors(base, [Lazy(list(deltas[0]), merged, trimmed)], scale=scale)


def _sum(vectors: Sequence[State], name: str) -> Tensor:
    total = vectors[0][name].clone()
    for vector in vectors[1:]:
        total += vector[name]
    return total


def _trimmed(delta: State, limit: Tensor, name: str) -> Tensor:
    value = delta[name]
    return torch.where(value.abs() >= limit.to(value.device, value.dtype), value, 0.0)


def _kth_magnitude(delta: State, trim_rate: float, dtype: torch.dtype) -> Tensor:
    """The ``int(trim_rate * P)``-th smallest of all P magnitudes; 0 if that is none of them.

    Magnitudes are ordered as their bits are when read as integers: they are counted by their first bits, then those
    that have the first bits of the wanted one by their next bits, and so on.
    """
    width = 8 * dtype.itemsize
    integer = torch.int32 if width == 32 else torch.int64
    prefix, rank = 0, 0
    for shift in range(width - BITS, -1, -BITS):
        counts = torch.zeros(2**BITS, dtype=torch.int64)
        for name in unique_names(delta):
            bits = _whole(delta[name]).abs().to(dtype).view(integer).flatten()  # the sign bit is 0
            alike = bits if shift == width - BITS else bits[bits >> (shift + BITS) == prefix]
            counts += torch.bincount((alike >> shift) & (2**BITS - 1), minlength=2**BITS).cpu()
        below = counts.cumsum(0)
        if shift == width - BITS:
            rank = int(trim_rate * int(below[-1]))  # counted from 1
            if rank == 0:
                break
        digit = int(torch.searchsorted(below, rank))
        rank -= int(below[digit] - counts[digit])
        prefix = (prefix << BITS) | digit
    return torch.tensor(prefix, dtype=integer).view(dtype)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
