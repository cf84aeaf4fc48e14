"""Sharpness-aware minimisation (P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, "Sharpness-Aware Minimization for
Efficiently Improving Generalization", 2021, arXiv 2010.01412; adaptive: J. Kwon, J. Kim, H. Park, I. K. Choi, "ASAM",
2021, arXiv 2102.11600): the gradient is taken where the loss is about largest, within a ball around the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from leyden.optim._common import check_at_least_zero, norms

__all__ = ["perturbed_parameters", "sam_perturbation"]


@torch.no_grad()
def sam_perturbation(
    params: Sequence[Tensor], grads: Sequence[Tensor], *, rho: float = 0.05, adaptive: bool = False, eps: float = 1e-12
) -> list[Tensor]:
    """Step to the point of the ball at which the linearised loss is largest, ``rho g / (|g| + eps)``.

    Args:
        params: P parameters w.
        grads: their gradients g.
        rho: radius, of all parameters together.
        adaptive: measure the radius relative to the size of each weight: ``rho w^2 g / (||w| g| + eps)``.
        eps: is added to the norm, over all parameters together.

    Returns:
        P tensors.

    Raises:
        ValueError: ``rho`` is negative.
    """
    check_at_least_zero(rho=rho)
    scaled = [p.abs() * g for p, g in zip(params, grads, strict=True)] if adaptive else list(grads)
    scale = rho / (norms(scaled).norm() + eps)
    if adaptive:
        return [p.abs() * s * scale for p, s in zip(params, scaled, strict=True)]
    return [g * scale for g in grads]


@contextmanager
def perturbed_parameters(params: Sequence[Tensor], perturbation: Sequence[Tensor]) -> Iterator[None]:
    """Within it, parameters are moved; behind it, they have their bits again, which subtraction would not give.

    Args:
        params: P parameters.
        perturbation: what is added to them, P tensors.
    """
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        torch._foreach_add_(list(params), list(perturbation))
    torch.clear_autocast_cache()  # which has the weights in low precision
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(params), kept)
        torch.clear_autocast_cache()
