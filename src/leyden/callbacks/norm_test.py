"""Is a batch large enough for its gradient to be trusted, and if not, how large should it be? (T. T.-K. Lau, H. Liu,
M. Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", 2024, arXiv 2402.11215)

The norm test is that of R. Byrd et al. (2012), the inner product tests are those of R. Bollapragada, R. Byrd and
J. Nocedal (2018). Original code: timlautk/AdAdaGrad, ``tests.py``.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leyden.callbacks._needed_batch_size import flat_rows, size_by_inner_product, size_by_norm

__all__ = ["NormTest", "inner_product_test", "norm_test", "pool_shards"]


class NormTest(NamedTuple):
    """What a test finds.

    Attributes:
        batch_size: that passes the test, at least the present one; `sys.maxsize` if the mean gradient is 0.
        variance: of the gradients of single samples, summed over coordinates; or of their products with the mean.
        grad_norm_squared: of the mean gradient.
    """

    batch_size: int
    variance: float
    grad_norm_squared: float


def norm_test(grads: Sequence[Tensor], *, eta: float = 0.1, coordinatewise: bool = False) -> NormTest:
    """Whether the error of the mean gradient is small beside it: ``sum_j var_j / B <= eta^2 * |mean|^2``.

    Args:
        grads: gradients of each of B samples by each parameter, ``[B, ...]`` each, B >= 2.
        eta: largest relative error, positive.
        coordinatewise: asks it of every coordinate by itself. (The original code has the sum alone; that the largest
            batch counts which a coordinate asks for follows from the condition, and was not compared with the paper.)

    Raises:
        ValueError: there are no gradients of two or more samples each, or ``eta`` is not positive.
    """
    _check_positive(eta=eta)
    rows = _checked(grads)
    variance, mean = torch.var_mean(rows, dim=0)
    return _found(len(rows), *size_by_norm(mean, variance, eta=eta, coordinatewise=coordinatewise))


def inner_product_test(grads: Sequence[Tensor], *, theta: float = 0.1, nu: float | None = None) -> NormTest:
    """Whether steps go downhill: ``var_i <g_i, mean> / B <= theta^2 * |mean|^4``.

    One product is made per sample, over all parameters; the original code makes one per parameter and adds their
    variances.

    Args:
        grads: as in `norm_test`.
        theta: largest relative error of the product, positive.
        nu: also tests the part orthogonal to the mean (the augmented test):
            ``sum_j var_j (g_i - <g_i, mean> mean / |mean|^2) / B <= nu^2 * |mean|^2``; positive.

    Raises:
        ValueError: as in `norm_test`.
    """
    _check_positive(theta=theta, **({} if nu is None else {"nu": nu}))
    rows = _checked(grads)
    mean = rows.mean(0)
    found = size_by_inner_product(rows @ mean, rows.square().sum(1), mean, theta=theta, nu=nu)
    return _found(len(rows), *found)


def pool_shards(means: Tensor, variances: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of all samples, from those of shards.

    The original code takes the mean of the variances plus the variance of the means, which is a little larger, the more
    so the smaller the shards: batch sizes would depend on how many processes share a batch.

    Args:
        means: of each of S shards, ``[S, ...]``.
        variances: unbiased, of the same shape; 0 where a shard is one sample.
        sizes: numbers of samples, ``[S]``.

    Returns:
        ``[...]`` each.
    """
    sizes = sizes.to(means).view(-1, *[1] * (means.ndim - 1))
    total = sizes.sum()
    mean = (sizes * means).sum(0) / total
    squares = ((sizes - 1) * variances + sizes * (means - mean).square()).sum(0)
    return mean, squares / (total - 1)


def _found(batch_size: int, needed: float, variance: float, squared: float) -> NormTest:
    needed = max(float(batch_size), needed)  # in this order a NaN does not count
    return NormTest(sys.maxsize if math.isinf(needed) else math.ceil(needed), variance, squared)


def _checked(grads: Sequence[Tensor]) -> Tensor:
    sizes = {len(grad) if grad.ndim else 0 for grad in grads}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(f"grads must be gradients of the same two or more samples, got {sorted(sizes)} rows")
    return flat_rows(grads)


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}")
