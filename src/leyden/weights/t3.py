"""T3 (R. Imam, H. Wang, D. Mahapatra, M. Yaqub, "T3: Test-Time Model Merging in VLMs for Zero-Shot Medical Imaging
Analysis", 2025, arXiv 2510.27265): how much of a generalist is mixed into an expert, from how much the two disagree.

The formula of the coefficient and gamma = 0.5 are those of the authors' published README. Unverified: the limits 0 and
1, and that a batch takes the mean of its coefficients, not the coefficient of its mean.
"""

import math

import torch
from torch import Tensor

from leyden.weights._states import State
from leyden.weights.combine import combine

__all__ = ["interpolate", "t3_coefficient"]


def t3_coefficient(
    divergence: Tensor, *, lambda_min: float = 0.0, lambda_max: float = 1.0, gamma: float = 0.5, batch: bool = False
) -> Tensor:
    """``lambda_min + (lambda_max - lambda_min) sigmoid(gamma divergence)``: the generalist's share of the weights.

    A divergence is never negative, so that networks that agree get the middle of the limits, not the expert; with the
    defaults the share lies in [0.5, 0.586]. A larger ``gamma`` widens that, and ``lambda_min=-1`` starts it at 0.

    Args:
        divergence: Jensen-Shannon divergence of each sample, in nats, ``[N]``.
        lambda_min: lower limit.
        lambda_max: upper limit, at most 1.
        gamma: steepness, at least 0.
        batch: whether the samples share the mean of their coefficients.

    Returns:
        ``[N]``, or a scalar if ``batch``.

    Raises:
        ValueError: an argument is out of range or of another shape, or is to be meaned over no samples.
    """
    if not (math.isfinite(lambda_min) and lambda_min <= lambda_max <= 1.0 and lambda_min + lambda_max >= 0.0):
        raise ValueError(
            "lambda_min and lambda_max must be ordered, at most 1 and have a middle of at least 0, got "
            f"{lambda_min} and {lambda_max}"
        )
    if not (math.isfinite(gamma) and gamma >= 0.0):
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
    if divergence.ndim != 1 or (batch and not len(divergence)):
        raise ValueError(f"divergence must be [N], one per sample, got {tuple(divergence.shape)}")
    share = lambda_min + (lambda_max - lambda_min) * (gamma * divergence).sigmoid()
    return share.mean() if batch else share


def interpolate(a: State, b: State, t: float | Tensor) -> dict[str, Tensor]:
    """Returns ``t a + (1 - t) b`` of two state dicts; 1 and 0 give the two ends bit for bit.

    Args:
        a: state dict, or a reader of a file.
        b: likewise; what is not floating point is copied from it.
        t: share of ``a``, one finite number.

    Returns:
        New tensors, on the device and in the dtype of ``a``.

    Raises:
        ValueError: names or shapes differ, or ``t`` is not one finite number.
    """
    share = torch.as_tensor(t, dtype=torch.float64)
    if share.ndim or not share.isfinite():
        raise ValueError(f"t must be one finite number, got {t}")
    return combine([a, b], [float(share), 1.0 - float(share)])
