"""Gradient dropout regularity (K. Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
Vision-Language Models", 2023, arXiv 2307.15049, equations 6 and 7): what goes against a second loss is dropped from a
gradient, at random.

Original code: wuw2019/R-AMT, ``trainers/masktuning.py``.
"""

import torch
from torch import Tensor

__all__ = ["gradient_dropout"]


def gradient_dropout(
    grad: Tensor, reference: Tensor, uniform: Tensor | None = None, *, strength: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Returns a gradient of which entries are dropped, the likelier the more they disagree with a reference.

    An entry g stays with probability ``P = (1 + sign(g) (g + r) / (|g| + |r| + eps)) / 2``: surely (up to ``eps``)
    where the reference r has its sign or is 0, in half of the cases where ``r = -g``. Nothing is divided by P.

    Args:
        grad: floating point, of any shape.
        reference: gradient of the other loss, of that shape.
        uniform: numbers in [0, 1), of that shape; drawn if None. An entry stays where P is larger.
        strength: an entry that does not stay is ``1 - strength`` of what it was; in [0, 1].
        eps: keeps P finite.

    Raises:
        ValueError: shapes differ, or ``strength`` is out of range.
    """
    uniform = torch.rand_like(grad) if uniform is None else uniform
    for name, tensor in (("reference", reference), ("uniform", uniform)):
        if tensor.shape != grad.shape:
            raise ValueError(f"{name} must have the shape of grad, {tuple(grad.shape)}, got {tuple(tensor.shape)}")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    agreement = grad.sign() * (grad + reference) / (grad.abs() + reference.abs() + eps)  # in [-1, 1]
    stays = 0.5 * (1.0 + agreement) > uniform
    return torch.where(stays, grad, (1.0 - strength) * grad)
