"""Sparse architecture divergence (A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch", 2021, arXiv 2102.04010, definition 1): how far the masks of two moments are apart."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SparseArchitectureDivergence", "sparse_architecture_divergence"]


def sparse_architecture_divergence(mask_a: Tensor | Iterable[Tensor], mask_b: Tensor | Iterable[Tensor]) -> Tensor:
    """Number of weights that one mask keeps and the other does not.

    Args:
        mask_a: mask of a layer, bool, or those of all layers.
        mask_b: the other, of the same shapes.

    Returns:
        int64 ``[]``, the sum over the layers.

    Raises:
        ValueError: the shapes, or the numbers of layers, differ.
    """
    masks_a = [mask_a] if isinstance(mask_a, Tensor) else list(mask_a)
    masks_b = [mask_b] if isinstance(mask_b, Tensor) else list(mask_b)
    shapes_a, shapes_b = ([tuple(mask.shape) for mask in masks] for masks in (masks_a, masks_b))
    if shapes_a != shapes_b:
        raise ValueError(f"mask_b must have the shapes of mask_a, {shapes_a}, got {shapes_b}")
    changed = [(a.bool() ^ b.bool()).sum() for a, b in zip(masks_a, masks_b, strict=True)]
    return torch.stack(changed).sum() if changed else torch.tensor(0)


class SparseArchitectureDivergence(Metric):
    """Sum of `sparse_architecture_divergence` over all updates; masks are alike on all processes."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), dist_reduce_fx="max")

    def update(self, mask_a: Tensor | Iterable[Tensor], mask_b: Tensor | Iterable[Tensor]) -> None:
        """Adds what differs between two masks, or lists of them."""
        self.total += sparse_architecture_divergence(mask_a, mask_b)

    def compute(self) -> Tensor:
        """Returns the sum, int64 ``[]``."""
        return self.total
