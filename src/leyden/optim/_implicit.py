"""Derivatives through the minimiser of an inner objective, by products with its second derivatives alone."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Objective", "conjugate_gradient", "hypergradient", "mixed_norm", "mixed_product"]

Objective = Callable[[Tensor, Tensor], Tensor]  # gives a scalar of x and theta

_POWER_ITERATIONS = 10


def hypergradient(
    lower: Objective, upper: Objective, x: Tensor, theta: Tensor, *, tol: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Hypergradient, q, the gradient of ``upper`` in x and the number of iterations."""
    x, theta = x.detach().requires_grad_(True), theta.detach().requires_grad_(True)
    upper_x, upper_theta = torch.autograd.grad(upper(x, theta), (x, theta), allow_unused=True, materialize_grads=True)
    q, iterations = conjugate_gradient(lower, x, theta, upper_x, tol=tol, max_iterations=max_iterations)
    return upper_theta - mixed_product(lower, x, theta, q), q, upper_x, iterations


def _slope(lower: Objective, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of ``lower`` in x, with a graph, and the two tensors that it is a function of."""
    x, theta = x.detach().requires_grad_(True), theta.detach().requires_grad_(True)
    [slope] = torch.autograd.grad(lower(x, theta), x, create_graph=True)
    return slope, x, theta


def mixed_product(lower: Objective, x: Tensor, theta: Tensor, v: Tensor) -> Tensor:
    """``lower_theta_x v``."""
    slope, _, theta = _slope(lower, x, theta)
    [product] = torch.autograd.grad(slope, theta, v, allow_unused=True, materialize_grads=True)
    return product


def mixed_norm(lower: Objective, x: Tensor, theta: Tensor, v: Tensor) -> float:
    """Spectral norm of ``lower_theta_x``, by the power method from v."""
    slope, _, theta = _slope(lower, x, theta)
    norm = 0.0
    for _ in range(_POWER_ITERATIONS):
        v = (v / v.norm()).detach().requires_grad_(True)
        [product] = torch.autograd.grad(slope, theta, v, create_graph=True, allow_unused=True, materialize_grads=True)
        norm = product.norm().item()
        if norm == 0.0:
            break
        [v] = torch.autograd.grad(product, v, product.detach(), retain_graph=True)
    return norm


def conjugate_gradient(
    lower: Objective, x: Tensor, theta: Tensor, b: Tensor, *, tol: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Solves ``lower_x_x q = b`` to a residual of norm ``tol``; returns q and the number of iterations."""
    slope, x, _ = _slope(lower, x, theta)
    q, residual = torch.zeros_like(b), b
    direction, square = b, b.square().sum()
    for iteration in range(max_iterations):
        if square.sqrt() <= tol:
            return q, iteration
        [product] = torch.autograd.grad(slope, x, direction, retain_graph=True)
        curvature = (direction * product).sum()
        if not curvature > 0.0:
            raise ValueError(
                "lower is not strongly convex in x: a direction of conjugate gradients has the curvature "
                f"{curvature.item():.3g}; add a small quadratic"
            )
        length = square / curvature
        q, residual = q + length * direction, residual - length * product
        new_square = residual.square().sum()
        direction, square = residual + new_square / square * direction, new_square
    return q, max_iterations
