"""Dice loss (X. Li, X. Sun, Y. Meng, J. Liang, F. Wu, J. Li, "Dice Loss for Data-imbalanced NLP Tasks", 2019, arXiv
1911.02855, section 3): an F1 score of probabilities, in which a rare class counts as much as the others.

The authors' code without the squares divides the numerator of each example by sums over the batch; here both are of
one example, as in the paper.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.distributed import all_gather_rows_with_grad
from leyden.losses.reduction import reduce_loss

__all__ = ["BinaryDiceLoss", "DiceLoss", "TverskyLoss", "binary_dice_loss", "dice_loss", "tversky_loss"]


def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.0,
    smooth: float = 1.0,
    square_denominator: bool = True,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """One minus the dice coefficient of each example and class, summed over the classes.

    With ``p`` of the softmax and ``w = (1 - p)^alpha p`` the coefficient is ``(2 w y + smooth) / (w^2 + y^2 +
    smooth)``.

    Args:
        input: scores before softmax, ``[N, C]``.
        target: class numbers, int64 ``[N]``, or probabilities of the classes, ``[N, C]``.
        alpha: how much less easy examples count. Above 0 a certain probability has a weight of zero, and a loss.
        smooth: added to numerator and denominator; without it a class that an example is not of has no gradient.
        square_denominator: whether the denominator has the squares; if not, it is ``w + y + smooth``.
        ignore_index: class number of rows that have no loss and are not in the mean.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes do not fit, ``alpha`` or ``smooth`` is negative, or another ``reduction``.
    """
    _check(alpha=alpha, smooth=smooth)
    if input.ndim != 2:
        raise ValueError(f"input must have the shape [N, C], got {tuple(input.shape)}")
    if target.is_floating_point():
        if target.shape != input.shape:
            raise ValueError(f"soft targets must have the shape {tuple(input.shape)}, got {tuple(target.shape)}")
        kept = torch.ones_like(target[:, 0], dtype=torch.bool)
        y = target
    else:
        if target.shape != input.shape[:1]:
            raise ValueError(f"class numbers must have the shape {tuple(input.shape[:1])}, got {tuple(target.shape)}")
        kept = target != ignore_index
        y = functional.one_hot(torch.where(kept, target, 0), input.shape[1])
    p = input.softmax(-1, dtype=torch.promote_types(input.dtype, torch.float32))  # [N, C]
    w, y = _weighted(p, alpha), y.to(p.dtype)
    sizes = w.square() + y.square() if square_denominator else w + y
    losses = torch.where(kept, (1.0 - _ratio(2.0 * w * y + smooth, sizes + smooth)).sum(1), 0.0)
    if reduction == "mean":
        return losses.sum() / kept.sum().clamp(min=1)
    return reduce_loss(losses, reduction)


def binary_dice_loss(
    input: Tensor, target: Tensor, *, alpha: float = 0.0, smooth: float = 1.0, square_denominator: bool = False
) -> Tensor:
    """One minus the dice coefficient of two sets: all that are predicted, and all that are positive.

    Numerator and denominator of `dice_loss` are sums over all elements, of all processes.

    Args:
        input: scores before the sigmoid, of any shape, or of two classes before the softmax, ``[..., 2]``.
        target: 0 or 1, or numbers between; of the same shape, ``[...]`` for two classes.
        alpha: as in `dice_loss`.
        smooth: as in `dice_loss`.
        square_denominator: as in `dice_loss`.

    Returns:
        ``[]``, the same on all processes; the mean of its gradients over them (as DDP takes it) is that of the whole.

    Raises:
        ValueError: the shapes differ, or ``alpha`` or ``smooth`` is negative.
    """
    _check(alpha=alpha, smooth=smooth)
    p, y = _binary(input, target)
    w = _weighted(p, alpha)
    both, sizes = _sums(w * y, w.square() + y.square() if square_denominator else w + y)
    return 1.0 - _ratio(2.0 * both + smooth, sizes + smooth)


def tversky_loss(
    input: Tensor, target: Tensor, *, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0
) -> Tensor:
    """One minus the Tversky index ``TP / (TP + alpha FP + beta FN)`` of all elements of all processes.

    Args:
        input: scores before the sigmoid, of any shape, or of two classes before the softmax, ``[..., 2]``.
        target: 0 or 1, or numbers between; of the same shape, ``[...]`` for two classes.
        alpha: weight of false positives.
        beta: weight of false negatives.
        smooth: added to numerator and denominator.

    Returns:
        ``[]``, as of `binary_dice_loss`.

    Raises:
        ValueError: the shapes differ, or ``alpha``, ``beta`` or ``smooth`` is negative.
    """
    _check(alpha=alpha, beta=beta, smooth=smooth)
    p, y = _binary(input, target)
    true_positive, false_positive, false_negative = _sums(p * y, p * (1.0 - y), (1.0 - p) * y)
    sizes = true_positive + alpha * false_positive + beta * false_negative
    return 1.0 - _ratio(true_positive + smooth, sizes + smooth)


class DiceLoss(nn.Module):
    """Module twin of `dice_loss`."""

    def __init__(
        self,
        *,
        alpha: float = 0.0,
        smooth: float = 1.0,
        square_denominator: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check(alpha=alpha, smooth=smooth)
        self.alpha = alpha
        self.smooth = smooth
        self.square_denominator = square_denominator
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return dice_loss(
            input,
            target,
            alpha=self.alpha,
            smooth=self.smooth,
            square_denominator=self.square_denominator,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class BinaryDiceLoss(nn.Module):
    """Module twin of `binary_dice_loss`."""

    def __init__(self, *, alpha: float = 0.0, smooth: float = 1.0, square_denominator: bool = False) -> None:
        super().__init__()
        _check(alpha=alpha, smooth=smooth)
        self.alpha = alpha
        self.smooth = smooth
        self.square_denominator = square_denominator

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return binary_dice_loss(
            input, target, alpha=self.alpha, smooth=self.smooth, square_denominator=self.square_denominator
        )


class TverskyLoss(nn.Module):
    """Module twin of `tversky_loss`."""

    def __init__(self, *, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0) -> None:
        super().__init__()
        _check(alpha=alpha, beta=beta, smooth=smooth)
        self.alpha = alpha
        self.beta = beta
        self.smooth = smooth

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return tversky_loss(input, target, alpha=self.alpha, beta=self.beta, smooth=self.smooth)


def _weighted(p: Tensor, alpha: float) -> Tensor:
    # at p = 1 a power below 1 has an infinite slope
    return (1.0 - p).clamp(min=torch.finfo(p.dtype).eps) ** alpha * p


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """One where both are zero: nothing is there, and nothing is missed."""
    is_some = denominator > 0.0
    return torch.where(is_some, numerator / torch.where(is_some, denominator, 1.0), 1.0)


def _binary(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and targets, float32 or better."""
    if input.shape == (*target.shape, 2):
        input = input[..., 1] - input[..., 0]
    if target.shape != input.shape:
        raise ValueError(f"target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}")
    p = input.to(torch.promote_types(input.dtype, torch.float32)).sigmoid()
    return p, target.to(p.dtype)


def _sums(*values: Tensor) -> Tensor:
    """Sums over all elements of all processes, ``[K]``, with a gradient to those of this one."""
    return all_gather_rows_with_grad(torch.stack([value.sum() for value in values]).unsqueeze(0)).sum(0)


def _check(**knobs: float) -> None:
    for name, value in knobs.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
