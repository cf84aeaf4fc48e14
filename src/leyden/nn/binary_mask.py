"""Mask tuning (K. Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language
Models", 2023, arXiv 2307.15049, section 3.2): the weights of a trained network stay, and which of them take part is
learned. A task costs one bit per weight.

Original code: wuw2019/R-AMT, ``modules/masklayers.py`` and ``trainers/masktuning.py``, which by default masks the
projections of attention (and chooses among them by how far the task moves them), learns by Adam at a rate of 8e-5 and
also adds 1e-4 times the norm of each matrix of scores to the loss, which is left out here.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.nn._layers import check_skip, is_skipped
from leyden.nn.lora import LoRALinear

__all__ = ["BinaryMask", "apply_mask_tuning", "binarize"]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True  # for gradients per sample

    @staticmethod
    def forward(scores: Tensor, threshold: float) -> Tensor:
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def binarize(scores: Tensor, threshold: float = 5e-3) -> Tensor:
    """1 where a score is larger than the threshold, else 0; the gradient is passed straight to the scores.

    Args:
        scores: floating point, of any shape.
        threshold: that scores must exceed.

    Returns:
        A tensor like ``scores``.
    """
    return _StraightThrough.apply(scores, threshold)


class BinaryMask(nn.Module):
    """``binarize(scores) * weight``, a parametrization for `torch.nn.utils.parametrize`.

    Args:
        shape: of the weight.
        init: score that all weights start from.
        threshold: see `binarize`.

    Attributes:
        scores: float32, like the weight; not to be decayed, which would mask weights.

    Raises:
        ValueError: ``init`` is not larger than ``threshold``, so that all weights would be masked.
    """

    def __init__(self, shape: Sequence[int], *, init: float = 1e-2, threshold: float = 5e-3) -> None:
        super().__init__()
        if not init > threshold:
            raise ValueError(f"init must be larger than threshold, got init={init} and threshold={threshold}")
        self.threshold = threshold
        self.scores = nn.Parameter(torch.full(tuple(shape), init))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight, 0 where it is masked."""
        return binarize(self.scores, self.threshold).to(weight.dtype) * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Takes a weight that is assigned as the one under the mask."""
        return weight

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{tuple(self.scores.shape)}, threshold={self.threshold}"


def apply_mask_tuning(
    module: nn.Module,
    match: Sequence[str] = ("*",),
    *,
    skip: Sequence[str] = (),
    init: float = 1e-2,
    threshold: float = 5e-3,
) -> list[str]:
    """Masks the weights of linear layers and convolutions, in place, and freezes all other parameters.

    The network starts as it was. Train it with batch norms in eval mode, as the authors do: their statistics belong to
    what the masks of all tasks share.

    Args:
        module: the network.
        match: shell-style patterns of the layers' dotted names; ``*`` spans dots too.
        skip: dotted names of modules that stay as they are and are trained as a whole, such as a new ``head``.
        init: as in `BinaryMask`.
        threshold: as in `BinaryMask`.

    Returns:
        Dotted names of the layers that are masked now.

    Raises:
        ValueError: a pattern matches no such layer, there is no module of a name in ``skip``, the network has updates
            of low rank, or ``init`` is not larger than ``threshold``.
    """
    check_skip(module, skip)
    if any(isinstance(layer, LoRALinear) for layer in module.modules()):
        raise ValueError(
            "masks leave the weights as they are, but this network has LoRA's updates: apply one of the two"
        )
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not is_skipped(name, skip)
    }
    for pattern in match:
        if not any(fnmatchcase(name, pattern) for name in layers):
            there = ", ".join(layers) or "of which there are none"
            raise ValueError(f"match: {pattern!r} matches none of the linear layers and convolutions, {there}")
    chosen = {name: layer for name, layer in layers.items() if any(fnmatchcase(name, pattern) for pattern in match)}
    for name, p in module.named_parameters():
        if not (is_skipped(name, skip) or name.endswith(".scores")):
            p.requires_grad_(False)
    for layer in chosen.values():
        if not _is_masked(layer):
            mask = BinaryMask(layer.weight.shape, init=init, threshold=threshold)
            parametrize.register_parametrization(layer, "weight", mask.to(layer.weight.device))
    return list(chosen)


def _is_masked(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(part, BinaryMask)
        for part in layer.parametrizations.weight  # type: ignore[union-attr]
    )
