"""Distance covariance, of two variables (G. Szekely, M. Rizzo, N. Bakirov, "Measuring and testing dependence by
correlation of distances", 2007), of several jointly (S. Chakraborty, X. Zhang, "Distance Metrics for Measuring Joint
Dependence with Application to Causal Inference", 2019, section 3) and of one with several concatenated (H. M. Lee, K.
Antonio, B. Avanzi, L. Marchi, R. Zhou, "Machine Learning with Multitype Protected Attributes: Intersectional Fairness
through Regularisation", 2025, arXiv 2509.08163).

A variable is float ``[N]`` or ``[N, p]``, or integer (or bool) ``[N]`` or ``[N, q]``: categories, at the distances of
their one-hot vectors. All values are squared covariances, as the papers mean them, without the root. Unbiased estimates
may be negative; the others are upward biased, the more the smaller N is. Nothing here is a mean over examples: with
several processes, gather the variables first (`leyden.core.all_gather_rows_with_grad`).
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from leyden.losses._distances import squared_distances

__all__ = [
    "concatenated_distance_covariance",
    "distance_correlation",
    "distance_covariance",
    "joint_distance_covariance",
]


def distance_covariance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """Squared distance covariance: zero in the limit of many samples if and only if x and y are independent.

    Args:
        x: a variable, ``[N]`` or ``[N, p]``.
        y: another of the same samples.
        unbiased: the unbiased estimate, which needs 4 samples, in place of the mean over all pairs.

    Returns:
        ``[]``, float32 or better; scales as x times y.

    Raises:
        ValueError: the variables do not fit, or there are too few samples.
    """
    return joint_distance_covariance([x, y], unbiased=unbiased)


def distance_correlation(x: Tensor, y: Tensor | Sequence[Tensor], *, unbiased: bool = False) -> Tensor:
    """Squared distance correlation, ``dCov(x, y) / sqrt(dCov(x, x) dCov(y, y))``; 0 if x or y is constant.

    Args:
        x: a variable, ``[N]`` or ``[N, p]``.
        y: another of the same samples, or several, which are concatenated.
        unbiased: as in `distance_covariance`.

    Returns:
        ``[]``, in [0, 1] unless it is ``unbiased``.

    Raises:
        ValueError: the variables do not fit, or there are too few samples.
    """
    centred = _centred([[x], [y] if isinstance(y, Tensor) else y], unbiased)
    product = _mean(centred[0].square(), unbiased) * _mean(centred[1].square(), unbiased)
    scale = torch.where(product > 0.0, product, 1.0).sqrt()
    return torch.where(product > 0.0, _mean(centred[0] * centred[1], unbiased) / scale, 0.0)


def joint_distance_covariance(variables: Sequence[Tensor], *, c: float = 1.0, unbiased: bool = False) -> Tensor:
    """Squared joint distance covariance (JdCov): zero in the limit if and only if all variables are independent.

    If one of them is a prediction and the others depend on each other, it is not zero though the prediction be
    independent of them; what their own dependence adds does not change with the prediction.

    Args:
        variables: two or more, of the same samples.
        c: weight of the dependence of few variables against that of many; without effect for two.
        unbiased: as in `distance_covariance`.

    Returns:
        ``[]``, float32 or better.

    Raises:
        ValueError: the variables do not fit, ``c`` is not positive, or there are too few samples.
    """
    if len(variables) < 2:
        raise ValueError(f"variables must be two or more, got {len(variables)}")
    if not 0.0 < c < math.inf:
        raise ValueError(f"c must be positive and finite, got {c}")
    first, *others = _centred([[variable] for variable in variables], unbiased)
    if len(others) == 1:
        return _mean(first * others[0], unbiased)
    product = c - first
    for other in others:
        product = product * (c - other)
    return _mean(product - c ** len(variables), unbiased)


def concatenated_distance_covariance(
    prediction: Tensor, attributes: Sequence[Tensor], *, unbiased: bool = False
) -> Tensor:
    """Squared distance covariance of a prediction and all attributes side by side (CCdCov): intersections count.

    Args:
        prediction: a variable, ``[N]`` or ``[N, p]``.
        attributes: one or more of the same samples; the scale of each says how much it counts.
        unbiased: as in `distance_covariance`.

    Returns:
        ``[]``, float32 or better.

    Raises:
        ValueError: the variables do not fit, or there are too few samples.
    """
    if not len(attributes):
        raise ValueError("attributes must be one or more, got none")
    first, second = _centred([[prediction], attributes], unbiased)
    return _mean(first * second, unbiased)


def _centred(groups: Sequence[Sequence[Tensor]], unbiased: bool) -> list[Tensor]:
    """Matrices ``[N, N]`` of the distances of each group of variables, without the means of their rows and columns."""
    num_samples = len(groups[0][0]) if groups[0][0].ndim else 0
    shapes = [tuple(variable.shape) for group in groups for variable in group]
    if any(len(shape) not in (1, 2) or shape[0] != num_samples for shape in shapes):
        raise ValueError(f"variables must have the shapes [N] or [N, p] with one N, got {shapes}")
    if num_samples < (4 if unbiased else 1):
        raise ValueError(f"there must be at least {4 if unbiased else 1} samples, got {num_samples}")
    dtypes = [variable.dtype for group in groups for variable in group if variable.is_floating_point()]
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    matrices = []
    for group in groups:
        squared = reduce(torch.add, (_squared(variable, dtype) for variable in group))
        is_apart = squared > 0.0  # at a distance of zero the root has an infinite slope
        distances = torch.where(is_apart, squared, 1.0).sqrt() * is_apart
        rows, total = distances.sum(1), distances.sum()
        if unbiased:
            rows, total = rows / (num_samples - 2), total / ((num_samples - 1) * (num_samples - 2))
        else:
            rows, total = rows / num_samples, total / num_samples**2
        matrix = distances - rows - rows.unsqueeze(1) + total
        matrices.append(matrix - matrix.diag().diag() if unbiased else matrix)
    return matrices


def _squared(variable: Tensor, dtype: torch.dtype) -> Tensor:
    rows = variable.unsqueeze(1) if variable.ndim == 1 else variable
    if not rows.is_floating_point():
        return 2.0 * (rows.unsqueeze(1) != rows).sum(-1, dtype=dtype)
    rows = rows.to(dtype)
    return squared_distances(rows, rows)


def _mean(matrix: Tensor, unbiased: bool) -> Tensor:
    num_samples = len(matrix)
    return matrix.sum() / (num_samples * (num_samples - 3)) if unbiased else matrix.mean()
