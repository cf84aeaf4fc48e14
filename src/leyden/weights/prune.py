"""Pruning by magnitude, without retraining.

N:M masks: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021, arXiv
2102.04010, section 3.1. Pruning in one shot: A. Jaiswal, S. Liu, T. Chen, Z. Wang, "The Emergence of Essential Sparsity
in Large Pre-trained Models: The Weights that Matter", 2023, arXiv 2306.03805, section 2.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["magnitude_prune", "nm_mask", "nm_prune"]

_DIGIT = 16  # bits of a float that one pass of the search for the threshold settles


def nm_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Marks the ``n`` largest magnitudes in every group of ``m`` consecutive input features or channels.

    Args:
        weight: ``[out, in, ...]``, ``in`` a multiple of ``m``; groups run along ``in``.
        n: entries of a group that are kept; of equal ones those with the higher index.
        m: size of a group.

    Returns:
        bool, of the shape of ``weight``: True where an entry is kept.

    Raises:
        ValueError: ``n`` does not lie in 1 to ``m``, or the weight cannot be cut into groups.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
    if weight.ndim < 2 or weight.shape[1] % m:
        raise ValueError(f"weight must be [out, in, ...] with a multiple of m={m} inputs, got {tuple(weight.shape)}")
    groups = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, m))  # [out, ..., in / m, m]
    order = groups.argsort(dim=-1, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., m - n :], True)
    return mask.flatten(-2).movedim(-1, 1)


def nm_prune(
    state: Mapping[str, Tensor], n: int = 2, m: int = 4, *, keys: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Sets all but the ``n`` largest of every ``m`` weights along the inputs to zero.

    Args:
        state: weights by name; not written into.
        n: entries of a group that are kept.
        m: size of a group.
        keys: names of the tensors that are pruned; those with 2 or more dimensions if None.

    Returns:
        The weights, new tensors where they are pruned.

    Raises:
        ValueError: a name is unknown, or a tensor cannot be cut into groups.
    """
    pruned = dict(state)
    for key in _keys(state, keys):
        try:
            pruned[key] = state[key] * nm_mask(state[key], n, m)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; leave it out by keys") from None
    return pruned


def magnitude_prune(
    state: Mapping[str, Tensor], sparsity: float, *, scope: str = "global", keys: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Sets the smallest magnitudes to zero, ``round(sparsity * number of entries)`` of them; of equal ones the first.

    Args:
        state: weights by name; not written into.
        sparsity: share of zeros, in [0, 1].
        scope: ``"global"`` compares the entries of all tensors with each other, ``"layer"`` those of each.
        keys: names of the tensors that are pruned, in order; those with 2 or more dimensions if None.

    Returns:
        The weights, new tensors where they are pruned.

    Raises:
        ValueError: a name is unknown, there is another ``scope``, or ``sparsity`` is out of range.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}")
    names = _keys(state, keys)
    pruned = dict(state)
    for together in [names] if scope == "global" else [[name] for name in names]:
        count = round(sparsity * sum(state[name].numel() for name in together))
        if count == 0:
            continue
        dtype = torch.float64 if any(state[name].dtype == torch.float64 for name in together) else torch.float32
        threshold, num_equal = _threshold([state[name] for name in together], count, dtype)
        for name in together:
            bits = _bits(state[name], dtype)
            equal = bits == threshold
            cut = equal & (equal.flatten().cumsum(0).view_as(equal) <= num_equal)
            num_equal -= int(cut.sum())
            pruned[name] = state[name].masked_fill((bits < threshold) | cut, 0.0)
    return pruned


def _keys(state: Mapping[str, Tensor], keys: Iterable[str] | None) -> list[str]:
    if keys is None:
        return [name for name, tensor in state.items() if tensor.ndim >= 2 and tensor.is_floating_point()]
    keys = list(keys)
    unknown = [key for key in keys if key not in state]
    if unknown:
        raise ValueError(f"keys: there is no {', '.join(unknown)} among {', '.join(state)}")
    return keys


def _bits(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # the bits of a float without its sign, read as a whole number, are in the order of the magnitudes
    return tensor.detach().to(dtype).abs().view(torch.int64 if dtype == torch.float64 else torch.int32)


def _threshold(tensors: list[Tensor], count: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bits of the ``count``-th smallest magnitude, and how many of those equal to it are among the ``count``.

    Exact, and without a copy of all entries: every pass counts the next 16 bits of the entries that are still possible.
    """
    prefix = 0
    for shift in range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(2**_DIGIT, dtype=torch.int64)
        for tensor in tensors:
            bits = _bits(tensor, dtype).flatten() >> shift
            digits = bits[bits >> _DIGIT == prefix] & (2**_DIGIT - 1)
            counts += torch.bincount(digits, minlength=2**_DIGIT).cpu()
        up_to = counts.cumsum(0)
        digit = int(torch.searchsorted(up_to, count))
        count -= int(up_to[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    return prefix, count
