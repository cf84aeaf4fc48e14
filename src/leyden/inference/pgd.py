"""Projected gradient ascent on the input (A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards Deep
Learning Models Resistant to Adversarial Attacks", 2018, arXiv 1706.06083, section 2.1)."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["pgd"]


def pgd(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    norm: str = "l2",
    eps: float = float("inf"),
    step_size: float = 0.1,
    steps: int = 10,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    start: Tensor | None = None,
) -> Tensor:
    """Inputs near the given ones at which a score is larger.

    A step goes along the sign of the gradient (``"linf"``), or along the gradient over its norm (``"l2"``), and back to
    the nearest point that is within ``eps`` of ``x``, and within the bounds.

    Args:
        score: maps inputs ``[N, ...]`` to one number each, ``[N]``; each may depend on its own input only.
        x: inputs, ``[N, ...]``, within the bounds.
        norm: of the distance from ``x``, per input: ``"l2"`` or ``"linf"``.
        eps: largest distance.
        step_size: length of a step in that norm.
        steps: number of steps.
        bounds: smallest and largest legal number of an input; None for no bounds.
        start: where to start, ``[N, ...]``, moved to the nearest legal point; ``x`` if None.

    Returns:
        ``[N, ...]``, detached. No parameter gets a gradient.

    Raises:
        ValueError: an argument is out of range.
    """
    check_pgd(norm=norm, eps=eps, step_size=step_size, steps=steps, bounds=bounds)
    x = x.detach()
    found = x if start is None else _project(start.detach(), x, norm, eps, bounds)
    for _ in range(steps):
        with torch.enable_grad():
            place = found.detach().clone().requires_grad_()
            [gradient] = torch.autograd.grad(score(place).sum(), place)
        direction = gradient.sign() if norm == "linf" else gradient / _norms(gradient).clamp(min=1e-10)
        found = _project(found + step_size * direction, x, norm, eps, bounds)
    return found


def check_pgd(
    *, norm: str, eps: float, step_size: float, steps: int, bounds: tuple[float, float] | None = None
) -> None:
    """Raises `ValueError` for an argument of `pgd` that is out of range."""
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf', got {norm!r}")
    for name, value in (("eps", eps), ("step_size", step_size), ("steps", steps)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be a smaller and a larger number, got {bounds}")


def _project(place: Tensor, x: Tensor, norm: str, eps: float, bounds: tuple[float, float] | None) -> Tensor:
    move = place - x
    if norm == "linf":
        move = move.clamp(-eps, eps)
    else:
        move = move * (eps / _norms(move).clamp(min=1e-10)).clamp(max=1.0)
    return x + move if bounds is None else (x + move).clamp(*bounds)


def _norms(tensor: Tensor) -> Tensor:
    """Euclidean norm of each input, ``[N, 1, ...]``."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
