"""Stages of gradient boosting as one network (S. Emami, G. Martinez-Munoz, "Sequential Training of Neural Networks with
Gradient Boosting", 2019, arXiv 1909.12098, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fuse_boosted"]

Part = tuple[Tensor, Tensor, Tensor, Tensor]


def fuse_boosted(parts: Sequence[Part], steps: Sequence[float], intercept: Tensor) -> Part:
    """Two linear layers, with the stages' activation between them, that compute their weighted sum.

    Of the first k stages alone with ``parts[:k], steps[:k]``.

    Args:
        parts: of each stage the hidden weight ``[J, D]`` and bias ``[J]``, and the output's ``[C, J]`` and ``[C]``.
        steps: factor of each stage's output.
        intercept: what is added to the sum, ``[C]``.

    Returns:
        Weights and biases ``[T * J, D]``, ``[T * J]``, ``[C, T * J]``, ``[C]``.

    Raises:
        ValueError: there is no stage, or not one step for each.
    """
    if not parts or len(parts) != len(steps):
        raise ValueError(f"parts must hold a stage or more, and steps as many, got {len(parts)} and {len(steps)}")
    hidden, hidden_bias, out, out_bias = zip(*parts, strict=True)
    bias = intercept + torch.stack([step * b for step, b in zip(steps, out_bias, strict=True)]).sum(0)
    return (
        torch.cat(hidden),
        torch.cat(hidden_bias),
        torch.cat([step * weight for step, weight in zip(steps, out, strict=True)], 1),
        bias,
    )
