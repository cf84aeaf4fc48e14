"""How many samples a batch needs to pass the tests of its gradient."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["flat_rows", "size_by_inner_product", "size_by_norm"]


def flat_rows(grads: Iterable[Tensor]) -> Tensor:
    """Gradients of B samples by each parameter, ``[B, ...]``, side by side, ``[B, D]``; at least float32."""
    rows = torch.cat([grad.detach().reshape(len(grad), -1) for grad in grads], dim=1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def size_by_norm(mean: Tensor, variance: Tensor, *, eta: float, coordinatewise: bool) -> tuple[float, float, float]:
    """Batch size that passes the norm test, summed variance and squared norm of the mean; arguments are ``[D]``."""
    total, squared = _sum(variance), _sum(mean.square())
    if not coordinatewise:
        return _ratio(total, eta**2 * squared), total, squared
    varies = variance > 0.0
    if not varies.any():
        return 0.0, total, squared
    return (variance[varies] / mean[varies].square()).max().item() / eta**2, total, squared


def size_by_inner_product(
    products: Tensor, squares: Tensor, mean: Tensor, *, theta: float, nu: float | None
) -> tuple[float, float, float]:
    """The same for the inner product test.

    Args:
        products: of each sample's gradient with the mean, ``[B]``.
        squares: squared norms of the samples' gradients, ``[B]``.
        mean: ``[D]``.
        theta: as in `inner_product_test`.
        nu: likewise.
    """
    products, squared = products.double(), _sum(mean.square())
    if len(products) < 2:  # the last batch of an epoch: one sample does not vary
        return 0.0, 0.0, squared
    variance = products.var().item()
    needed = _ratio(variance, theta**2 * squared**2)
    if nu is not None and squared > 0.0:  # the orthogonal parts have mean 0
        orthogonal = (squares.double() - products.square() / squared).sum().item() / (len(products) - 1)
        needed = max(needed, _ratio(orthogonal, nu**2 * squared))
    return needed, variance, squared


def _ratio(numerator: float, denominator: float) -> float:
    if not numerator > 0.0:  # also where gradients are not finite
        return 0.0
    return numerator / denominator if denominator > 0.0 else math.inf


def _sum(values: Tensor) -> float:
    return values.sum(dtype=torch.float64).item()
