"""Spherical interpolation of two state dicts (K. Shoemake, "Animating Rotation with Quaternion Curves", 1985)."""

import math

import torch
from torch import Tensor

from leyden.weights._states import State, by_tensor, check_names, check_shape, computed_dtype, is_averaged

__all__ = ["slerp"]


@torch.no_grad()
def slerp(start: State, end: State, t: float = 0.5) -> dict[str, Tensor]:
    """Interpolates each tensor along the great circle, ``sin((1-t)w)/sin(w) a + sin(t w)/sin(w) b``.

    ``w`` is the angle between the two tensors as vectors; where they are nearly parallel (a cosine beyond 0.9995), or
    one is zero, the interpolation is linear.

    Args:
        start: state dict or reader; gives device and dtype.
        end: the other; entries that are not floating point come from it.
        t: 0 gives ``start``, 1 gives ``end``.

    Raises:
        ValueError: names or shapes differ, or ``t`` is outside of [0, 1].
    """
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    check_names([start, end])

    def entry(name: str) -> Tensor:
        a, b = start[name], end[name]
        check_shape(name, b, a)
        if not is_averaged(start, name):
            return b.to(a.device, copy=True)
        x, y = a.to(computed_dtype(a)), b.to(a.device, computed_dtype(a))
        norms = float(x.norm().double() * y.norm().double())
        cosine = float((x * y.conj()).sum().real.double()) / norms if norms > 0.0 else 1.0
        if abs(cosine) > 0.9995:
            low, high = 1.0 - t, t
        else:
            angle = math.acos(cosine)
            low, high = (math.sin(share * angle) / math.sin(angle) for share in (1.0 - t, t))
        return (low * x).add_(y, alpha=high).to(a.dtype)

    return by_tensor([start, end], entry)
