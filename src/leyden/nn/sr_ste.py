"""SR-STE (A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021, arXiv
2102.04010, equations 5 and 9).

Original code: aojunzz/NM-sparsity, ``devkit/sparse_ops/sparse_ops.py``, whose layers always use a decay of 2e-4. Its
sort leaves open which of equal entries is kept; here it is the one with the higher index.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leyden.weights.prune import nm_mask

__all__ = ["SRSTE", "nm_mask", "sr_ste"]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True  # for gradients per sample

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        weight, mask, ctx.decay = inputs
        ctx.save_for_backward(weight, mask)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        if ctx.decay:
            weight, mask = ctx.saved_tensors
            grad = grad + ctx.decay * (weight * ~mask)
        return grad, None, None


def sr_ste(weight: Tensor, n: int = 2, m: int = 4, *, decay: float = 2e-4) -> Tensor:
    """The N:M sparse weight; its gradient reaches all entries, and pulls those that are zero here towards zero.

    The gradient by ``weight`` is ``grad + decay * (1 - mask) * weight``: that of the sparse weight, passed straight
    through, and SR-STE's term. Each backward pass adds the term once, whatever the loss is multiplied by.

    Args:
        weight: dense, ``[out, in, ...]``, ``in`` a multiple of ``m``.
        n: entries of a group of ``m`` inputs that are kept.
        m: size of a group.
        decay: factor of the pull; 0 is the plain straight-through estimator.

    Raises:
        ValueError: ``decay`` is negative, ``n`` does not lie in 1 to ``m``, or the weight cannot be cut into groups.
    """
    if decay < 0.0:
        raise ValueError(f"decay must be at least 0, got {decay}")
    return _StraightThrough.apply(weight, nm_mask(weight, n, m), decay)


class SRSTE(nn.Module):
    """Module twin of `sr_ste`, for `torch.nn.utils.parametrize`; its mask is made anew in every call.

    A checkpoint holds the dense weight; `torch.nn.utils.parametrize.remove_parametrizations` leaves the sparse one.

    Args:
        n: entries of a group of ``m`` inputs that are kept.
        m: size of a group.
        decay: factor of the pull on the other entries.
    """

    def __init__(self, n: int = 2, m: int = 4, decay: float = 2e-4) -> None:
        super().__init__()
        self.n, self.m, self.decay = n, m, decay

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the sparse weight."""
        return sr_ste(weight, self.n, self.m, decay=self.decay)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Takes a weight that is assigned as the dense one."""
        return weight

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"n={self.n}, m={self.m}, decay={self.decay}"
