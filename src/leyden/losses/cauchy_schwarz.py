"""Cauchy-Schwarz divergence for regression (S. Yu, X. Yu, S. Lokse, R. Jenssen, J. Principe, "Cauchy-Schwarz Divergence
Information Bottleneck for Regression", 2024, arXiv 2404.17951).

Densities are estimated with Gaussian kernels ``exp(-||a - b||^2 / (2 sigma^2))``: inputs, features and targets should
have a standard deviation of about ``sigma``. In many dimensions all distances are large against it, and the estimates
hardly change any more. Nothing here is a mean over examples: with several processes, gather the tensors first
(`leyden.core.all_gather_rows_with_grad`).

The authors' code pairs targets ``[N]`` with predictions ``[N]`` in a way that leaves ``sum (y - p)^2 / (sigma^2 ln 2)``
of the divergence; here ``[N]`` means ``[N, 1]``, as in the paper.
"""

import math

import torch
from torch import Tensor, nn

from leyden.losses._distances import squared_distances

__all__ = ["ConditionalCSDivergence", "conditional_cs_divergence", "cs_qmi", "normalized_cs_qmi"]


def conditional_cs_divergence(prediction: Tensor, target: Tensor, input: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Divergence between the densities of prediction and target given the input, in bits.

    It is zero where they are equal. The estimate may be a little below zero elsewhere.

    Args:
        prediction: ``[N]`` or ``[N, D]``.
        target: the same shape.
        input: ``[N, ...]``.
        sigma: width of all kernels.

    Returns:
        ``[]``, float32 or better.

    Raises:
        ValueError: the shapes do not fit, a tensor holds no real numbers, or ``sigma`` is not positive.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"target must have the shape of prediction, {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    outputs, targets, inputs = _rows(sigma, prediction=prediction, target=target, input=input)
    kernel = _log_kernel(inputs, inputs, sigma)
    weight = kernel - (2.0 * kernel).logsumexp(1, keepdim=True)  # log of K_ij / sum_j K_ij^2

    def log_sum(x: Tensor, y: Tensor) -> Tensor:
        return (weight + _log_kernel(x, y, sigma)).logsumexp((0, 1))

    within = log_sum(targets, targets) + log_sum(outputs, outputs)
    return (within - 2.0 * log_sum(outputs, targets)) / math.log(2.0)


def cs_qmi(x: Tensor, y: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Quadratic mutual information: divergence between the joint density and the product of both, in bits.

    Args:
        x: ``[N, ...]``.
        y: ``[N, ...]``.
        sigma: width of both kernels.

    Returns:
        ``[]``, float32 or better, at least 0 up to rounding.

    Raises:
        ValueError: the shapes do not fit, a tensor holds no real numbers, or ``sigma`` is not positive.
    """
    return _qmi(*(_log_kernel(rows, rows, sigma) for rows in _rows(sigma, x=x, y=y)))


def normalized_cs_qmi(x: Tensor, y: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Quadratic mutual information over its geometric mean for x with itself and y with itself; 0 for constants.

    Args:
        x: ``[N, ...]``.
        y: ``[N, ...]``.
        sigma: width of both kernels.

    Returns:
        ``[]``, float32 or better; 1 for x with itself.

    Raises:
        ValueError: the shapes do not fit, a tensor holds no real numbers, or ``sigma`` is not positive.
    """
    first, second = (_log_kernel(rows, rows, sigma) for rows in _rows(sigma, x=x, y=y))
    product = _qmi(first, first).clamp(min=0.0) * _qmi(second, second).clamp(min=0.0)
    return _qmi(first, second).clamp(min=0.0) / product.clamp(min=1e-8).sqrt()


class ConditionalCSDivergence(nn.Module):
    """Module twin of `conditional_cs_divergence`."""

    def __init__(self, *, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, prediction: Tensor, target: Tensor, input: Tensor) -> Tensor:
        """Returns the divergence."""
        return conditional_cs_divergence(prediction, target, input, sigma=self.sigma)


def _rows(sigma: float, **tensors: Tensor) -> list[Tensor]:
    """The tensors as ``[N, D]``, float32 or better."""
    if not 0.0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}")
    sizes = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
    if len({*sizes.values()}) > 1 or 0 in sizes.values():
        raise ValueError(f"{', '.join(sizes)} must have one number of rows, 1 or more, got {[*sizes.values()]}")
    return [
        tensor.reshape(len(tensor), -1).to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors.values()
    ]


def _log_kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return squared_distances(x, y) / (-2.0 * sigma**2)


def _qmi(first: Tensor, second: Tensor) -> Tensor:
    joint = (first + second).logsumexp((0, 1))
    apart = first.logsumexp((0, 1)) + second.logsumexp((0, 1))
    mixed = (first.logsumexp(1) + second.logsumexp(1)).logsumexp(0)
    return (joint + apart - 2.0 * mixed) / math.log(2.0)
