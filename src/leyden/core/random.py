"""Random numbers that are a pure function of integer keys.

A draw keyed by (seed, step, sample) needs no state to save, and is the same on one process or on many: which process
holds a sample, and in which row of its batch, does not change what is drawn for it. The mixing function is SplitMix64
(G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 16).
"""

import math

import torch
from torch import Tensor

__all__ = ["normal", "sample_keys", "uniform"]

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def sample_keys(seed: int, step: int, index: Tensor) -> Tensor:
    """One key per sample, from which `uniform` and `normal` draw.

    Args:
        seed: seed of the run.
        step: number of the training step (or of the epoch, where a sample is to be treated alike all epoch).
        index: positions of the samples in the data set, int64 ``[N]``.

    Returns:
        int64 ``[N]``.
    """
    base = _mix(torch.tensor(_signed(seed * _GAMMA)))
    base = _mix(base + _signed(step * _GAMMA))
    return _mix(index + base.item())


def uniform(keys: Tensor, *shape: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) with 24 random bits each.

    Args:
        keys: one int64 key per row, ``[N]``.
        shape: shape of one row.
        stream: number of the draw: different streams are independent.

    Returns:
        float32 ``[N, *shape]``, on the device of ``keys``.
    """
    counter = torch.arange(1, math.prod(shape) + 1, device=keys.device)  # [M]
    keys = _mix(keys + _signed((2 * stream + 1) * _MULTIPLIER_1))
    bits = _mix(keys.unsqueeze(-1) + counter * _signed(_GAMMA))  # [N, M]
    return (_shift(bits, 40).to(torch.float32) * 2.0**-24).view(len(keys), *shape)


def normal(keys: Tensor, *shape: int, stream: int = 0) -> Tensor:
    """Standard normal numbers, by the inverse of the distribution function.

    Args and returns are those of `uniform`. The largest magnitude is 5.3, from the 24 bits of the uniform number.
    """
    centred = 2.0 * uniform(keys, *shape, stream=stream) - (1.0 - 2.0**-24)  # in (-1, 1), symmetric
    return torch.erfinv(centred).mul_(math.sqrt(2.0))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _shift(x, 27)) * _signed(_MULTIPLIER_2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # `>>` on int64 copies the sign: mask it off
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
