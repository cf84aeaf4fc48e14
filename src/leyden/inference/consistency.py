"""Sampling from consistency models (Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023,
arXiv 2303.01469, algorithm 1)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["consistency_sample"]


@torch.no_grad()
def consistency_sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    noise: Sequence[Tensor],
    sigmas: Sequence[float] = (80.0,),
    *,
    sigma_min: float = 0.002,
) -> Tensor:
    """Samples made of noise: denoised, and for each further step made noisy and denoised again.

    Args:
        denoise: maps noisy samples ``[N, ...]`` and the sizes of their noise ``[N]`` to samples without.
        noise: standard normal, for each step one of ``[N, ...]``.
        sigmas: descending sizes of noise, one per step; the first is the largest of the training.
        sigma_min: the least size of noise, with which denoised samples still are.

    Returns:
        ``[N, ...]``.

    Raises:
        ValueError: there is no step, not as much noise as steps, or a size is out of range.
    """
    if not sigmas or len(noise) != len(sigmas):
        raise ValueError(f"there must be one noise per sigma, and at least one, got {len(noise)} and {len(sigmas)}")
    if min(sigmas) < sigma_min or list(sigmas) != sorted(sigmas, reverse=True):
        raise ValueError(f"sigmas must descend, and none be below sigma_min ({sigma_min}), got {tuple(sigmas)}")
    x = torch.zeros_like(noise[0])
    for step, (sigma, z) in enumerate(zip(sigmas, noise, strict=True)):
        x = x + (sigma if step == 0 else (sigma**2 - sigma_min**2) ** 0.5) * z
        x = denoise(x, x.new_full((len(x),), sigma))
    return x
