"""Sparse initial weights (M. Elsayed, G. Vasan, A. R. Mahmood, "Streaming Deep Reinforcement Learning Finally Works",
2024, arXiv 2410.14606, algorithm 1)."""

import math

import torch
from torch import Tensor

__all__ = ["sparse_init_"]


@torch.no_grad()
def sparse_init_(tensor: Tensor, sparsity: float = 0.9, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills a weight with uniform numbers in ``+-1 / sqrt(fan_in)``, of which most in every output's row become 0.

    Args:
        tensor: weight of a linear layer or convolution, ``[out, in, ...]``, changed in place; ``fan_in`` is the size of
            a row.
        sparsity: share of the zeros in a row, rounded up.
        generator: source of the numbers, on the tensor's device; PyTorch's global one if None.

    Returns:
        The tensor.

    Raises:
        ValueError: the tensor has fewer than 2 dimensions, or ``sparsity`` is outside of [0, 1].
    """
    if tensor.ndim < 2:
        raise ValueError(f"tensor must have the shape [out, in, ...], got {tuple(tensor.shape)}")
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    fan_in = tensor[0].numel()
    bound = 1.0 / math.sqrt(fan_in)
    tensor.uniform_(-bound, bound, generator=generator)
    draws = torch.rand(len(tensor), fan_in, generator=generator, device=tensor.device)
    zeros = draws.argsort(-1)[:, : math.ceil(sparsity * fan_in)]
    mask = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, zeros, True)  # [out, fan_in]
    return tensor.masked_fill_(mask.view(tensor.shape), 0.0)
