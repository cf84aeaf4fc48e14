"""Masks and structures that decay (A. R. Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training
in Transformers", 2024, arXiv 2402.04744, section 4).

Original code: abhibambhaniya/progressive_gradient_flow_nm_sparsity, ``timm/sparse_pruning/sparse_functions.py``. As
there, the gradient passes to all entries unchanged: the decay acts through the forward values. That code's linear layer
drops its bias, and its exponential decay cannot be run for a wrong indent; neither is so here. Its names for the
structures are ``SPARSIFY`` (stepwise) and ``FINE`` (geometric).
"""

import math

import torch
from torch import Tensor, nn

from leyden.weights.prune import nm_mask

__all__ = ["DecayedNM", "decayed_nm_weight", "mask_decay_factor", "structure_decay"]


def mask_decay_factor(step: int, *, kind: str = "linear", coefficient: float = 1e-3) -> float:
    """Factor of the weights outside of the mask.

    Args:
        step: optimizer steps since the end of the dense phase.
        kind: ``"linear"`` for ``max(0, 1 - coefficient * step)``, ``"exp"`` for ``exp(-coefficient * step)``, or
            ``"step"`` for 0.
        coefficient: decay per step.

    Raises:
        ValueError: another ``kind``, or a number is negative.
    """
    if step < 0 or coefficient < 0.0:
        raise ValueError(f"step and coefficient must be at least 0, got {step} and {coefficient}")
    if kind == "linear":
        return max(0.0, 1.0 - coefficient * step)
    if kind == "exp":
        return math.exp(-coefficient * step)
    if kind == "step":
        return 0.0
    raise ValueError(f"kind must be 'linear', 'exp' or 'step', got {kind!r}")


def structure_decay(kind: str, n: int, m: int) -> list[tuple[int, int]]:
    """The structures that a training goes through, each for the same time, ending in ``(n, m)``.

    Args:
        kind: ``"stepwise"`` halves what is kept of every ``m``, as in 15:16, 8:16, 4:16, 2:16, 1:16; ``"geometric"``
            halves both numbers of the same share, as in 8:128, 4:64, 2:32, 1:16.
        n: entries of a group that are kept in the end.
        m: size of a group in the end.

    Raises:
        ValueError: another ``kind``, ``n`` does not lie in 1 to ``m``, or ``m / n`` of ``"stepwise"`` is not a power of
            2 from 2 on.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
    if kind == "geometric":
        return [(scale * n, scale * m) for scale in (8, 4, 2, 1)]
    if kind != "stepwise":
        raise ValueError(f"kind must be 'stepwise' or 'geometric', got {kind!r}")
    halvings = (m // n).bit_length() - 1
    if n << halvings != m or halvings == 0:
        raise ValueError(f"m / n must be a power of 2, and at least 2, for 'stepwise', got n={n} and m={m}")
    return [(m - 1, m), *((m >> halving, m) for halving in range(1, halvings + 1))]


def decayed_nm_weight(weight: Tensor, n: int, m: int, factor: float | Tensor) -> Tensor:
    """The weight, times ``factor`` outside of its N:M mask; gradients pass straight through.

    Args:
        weight: dense, ``[out, in, ...]``, ``in`` a multiple of ``m``.
        n: entries of a group of ``m`` inputs that stay as they are.
        m: size of a group.
        factor: in [0, 1].

    Raises:
        ValueError: ``n`` does not lie in 1 to ``m``, or the weight cannot be cut into groups.
    """
    lost = (weight * ~nm_mask(weight, n, m)).detach()
    # of kept entries nothing is lost; of the others all, to the last bit, where the factor is 0
    return weight - lost + factor * lost


class DecayedNM(nn.Module):
    """Module twin of `decayed_nm_weight`, for `torch.nn.utils.parametrize`; its mask is made anew in every call.

    Args:
        n: entries of a group of ``m`` inputs that stay as they are; may be changed.
        m: size of a group; may be changed.
        factor: of the others; kept in a buffer ``factor``, which is to be filled and is not saved.
    """

    factor: Tensor

    def __init__(self, n: int = 2, m: int = 4, factor: float = 0.0) -> None:
        super().__init__()
        self.n, self.m = n, m
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight in which the entries outside of the mask are smaller."""
        return decayed_nm_weight(weight, self.n, self.m, self.factor.to(weight.dtype))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Takes a weight that is assigned as the dense one."""
        return weight

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"n={self.n}, m={self.m}"
