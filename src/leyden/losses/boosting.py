"""Gradient boosting of neural networks (S. Emami, G. Martinez-Munoz, "Sequential Training of Neural Networks with
Gradient Boosting", 2019, arXiv 1909.12098, section 3; authors' code: GAA-UAM/GBNN).

``loss`` is one of

- ``"mse"``: squared error; targets float ``[N, C]``, raw scores ``[N, C]``.
- ``"binary"``: ``log(1 + exp(-2 y F))`` with y = -1 for class 0 and 1 for class 1; targets int64 ``[N]``, raw scores
  ``[N, 1]``. The probability of class 1 is ``sigmoid(2 F)``.
- ``"multiclass"``: cross entropy of the softmax; targets int64 ``[N]`` or soft ``[N, C]``, raw scores ``[N, C]``.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BoostingLoss", "boosting_init", "boosting_residual", "boosting_step_size"]

BoostingLoss = Literal["mse", "binary", "multiclass"]
_MEAN_LIMIT = 1.0 - 1e-6  # of y in {-1, 1}: with a single class the first score would be infinite
_SMALLEST = 1e-12  # of the curvature that a step is divided by
_LARGEST_STEP = 1e3


def boosting_init(target: Tensor, *, loss: BoostingLoss, num_classes: int | None = None) -> Tensor:
    """The constant score that boosting begins with.

    Args:
        target: of the training set.
        loss: see above.
        num_classes: C for hard targets of ``"multiclass"``; one more than the largest if None.

    Returns:
        ``[C]``: the mean; ``[1]``: half the log odds; or ``[C]``: zeros.

    Raises:
        ValueError: ``loss`` is unknown, the target is of another kind than it needs, or empty.
    """
    _check(target, loss)
    if loss == "mse":
        return target.mean(0)
    if loss == "binary":
        mean = (2.0 * target.double() - 1.0).mean().clamp(-_MEAN_LIMIT, _MEAN_LIMIT)
        return torch.atanh(mean).unsqueeze(0).to(torch.get_default_dtype())
    size = target.shape[1] if target.ndim == 2 else num_classes or int(target.max()) + 1
    return torch.zeros(size, device=target.device)


def boosting_residual(raw: Tensor, target: Tensor, *, loss: BoostingLoss) -> Tensor:
    """What the next stage is fitted to: minus the gradient of the loss by the raw scores.

    Args:
        raw: scores F.
        target: as above.
        loss: see above.

    Returns:
        As ``raw``.

    Raises:
        ValueError: as `boosting_init`, or the shapes do not fit.
    """
    _check(target, loss)
    wanted = {"mse": target.shape, "binary": (len(target), 1), "multiclass": (len(target), raw.shape[-1])}[loss]
    if raw.shape != wanted or (loss == "multiclass" and target.ndim == 2 and target.shape != raw.shape):
        raise ValueError(f"raw must have the shape {tuple(wanted)} with loss={loss!r}, got {tuple(raw.shape)}")
    if loss == "mse":
        return target - raw
    if loss == "binary":
        y = 2.0 * target.to(raw.dtype).unsqueeze(-1) - 1.0
        return 2.0 * y * torch.sigmoid(-2.0 * y * raw)
    return _as_shares(target, raw) - raw.softmax(-1)


def boosting_step_size(target: Tensor, residual: Tensor, prediction: Tensor, *, loss: BoostingLoss) -> Tensor:
    """Newton's step along the prediction of a stage, one number for all samples and classes.

    Args:
        target: as above.
        residual: of `boosting_residual`.
        prediction: of the stage that was fitted to it, of its shape.
        loss: see above.

    Returns:
        Scalar, at most 1000 in size; 1 for ``"mse"``.

    Raises:
        ValueError: as `boosting_init`, or residual and prediction have different shapes.
    """
    _check(target, loss)
    if residual.shape != prediction.shape:
        raise ValueError(
            f"prediction must have the shape of residual, {tuple(residual.shape)}, got {tuple(prediction.shape)}"
        )
    if loss == "mse":
        return torch.ones((), dtype=residual.dtype, device=residual.device)
    if loss == "binary":
        y = 2.0 * target.to(residual.dtype).unsqueeze(-1) - 1.0
        curvature = residual * (2.0 * y - residual)
    else:
        p = _as_shares(target, residual) - residual
        curvature = p * (1.0 - p)
    step = (residual * prediction).sum() / (curvature * prediction.square()).sum().clamp(min=_SMALLEST)
    return step.clamp(-_LARGEST_STEP, _LARGEST_STEP)


def _as_shares(target: Tensor, like: Tensor) -> Tensor:
    shares = functional.one_hot(target, like.shape[-1]) if target.ndim == 1 else target
    return shares.to(like.dtype)


def _check(target: Tensor, loss: str) -> None:
    if loss not in ("mse", "binary", "multiclass"):
        raise ValueError(f"loss must be 'mse', 'binary' or 'multiclass', got {loss!r}")
    if len(target) == 0:
        raise ValueError("target must not be empty")
    is_hard = target.ndim == 1 and not target.is_floating_point()
    is_rows = target.ndim == 2 and target.is_floating_point()
    if not {"mse": is_rows, "binary": is_hard, "multiclass": is_hard or is_rows}[loss]:
        wanted = {"mse": "float [N, C]", "binary": "int64 [N]", "multiclass": "int64 [N] or float [N, C]"}[loss]
        raise ValueError(f"target must be {wanted} with loss={loss!r}, got {target.dtype} {tuple(target.shape)}")
    if loss == "binary" and not ((target == 0) | (target == 1)).all():
        raise ValueError(f"target must be 0 or 1 with loss='binary', got {int(target.min())} to {int(target.max())}")
