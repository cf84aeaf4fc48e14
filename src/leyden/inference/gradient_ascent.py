"""Gradient ascent on the input, the plainest search for designs with a trained surrogate."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gradient_ascent"]


def gradient_ascent(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    lr: float = 0.01,
    steps: int = 200,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Inputs at which a score is larger: ``steps`` times ``x <- x + lr * gradient``.

    Args:
        score: maps inputs ``[N, ...]`` to one number each, ``[N]``; each may depend on its own input only.
        x: where to start, ``[N, ...]``.
        lr: learning rate.
        steps: number of steps.
        bounds: smallest and largest legal number of an input, to which it is moved back; None for no bounds.

    Returns:
        ``[N, ...]``, detached. No parameter gets a gradient.

    Raises:
        ValueError: ``lr`` is not positive, or ``steps`` is negative.
    """
    if not lr > 0.0:
        raise ValueError(f"lr must be positive, got {lr}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    found = x.detach()
    for _ in range(steps):
        with torch.enable_grad():
            place = found.clone().requires_grad_()
            [gradient] = torch.autograd.grad(score(place).sum(), place)
        found = found + lr * gradient
        found = found if bounds is None else found.clamp(*bounds)
    return found
