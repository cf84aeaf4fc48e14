"""Eigenvalues of a symmetric matrix that is known by its products with vectors alone (C. Lanczos, 1950; G. Golub,
G. Meurant, "Matrices, Moments and Quadrature with Applications", 2010, chapters 4 and 6)."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["lanczos"]

_TOLERANCE = 1e-9  # of a product's length, below which it lies in the space that was searched


@torch.no_grad()
def lanczos(matvec: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Ritz values of a symmetric matrix A and their weights in a vector.

    ``sum_k weight_k f(node_k)`` is ``start^T f(A) start / |start|^2`` for polynomials f up to degree 2 * steps - 1. The
    largest and the smallest node are close to the largest and the smallest eigenvalue after few steps. All vectors are
    kept and made orthogonal anew, twice, in every step: ``[steps, D]``.

    Args:
        matvec: returns A times a vector, ``[D]``.
        start: any vector but 0, such as a random one, ``[D]``.
        steps: products with A at most; fewer are made where these vectors span a space that A does not leave.

    Returns:
        Nodes, ascending, and weights, which add to 1: float64 ``[K]`` each, K at most ``steps``.

    Raises:
        ValueError: ``start`` is no vector, or 0, or ``steps`` is below 1; or a product is not finite.
    """
    if start.ndim != 1 or not start.any():
        raise ValueError(f"start must be a vector other than 0, got shape {tuple(start.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    basis = start.new_empty(steps, len(start))
    basis[0] = start / _length(start)
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for step in range(steps):
        product = matvec(basis[step])
        length = _length(product)
        if not length < float("inf"):
            raise ValueError("matvec has returned a vector that is not finite")
        scale = max(scale, length)
        diagonal.append((product * basis[step]).sum(dtype=torch.float64).item())
        if step + 1 == steps:
            break
        known = basis[: step + 1]
        for _ in range(2):  # once leaves errors of rounding that grow
            product = product - (known @ product) @ known
        rest = _length(product)
        if rest <= max(_TOLERANCE, 4.0 * torch.finfo(start.dtype).eps) * scale:
            break
        beside.append(rest)
        basis[step + 1] = product / rest
    off = torch.tensor(beside, dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    nodes, modes = torch.linalg.eigh(matrix)
    return nodes, modes[0].square()


def _length(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()
