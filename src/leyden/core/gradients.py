"""Gradients of each loss term on its own, for methods that combine them by rule (gradient surgery)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from leyden.core.batch import Terms
from leyden.core.distributed import all_reduce_mean

__all__ = ["accumulate_gradients", "gradients_per_term", "with_gradients"]


def gradients_per_term(terms: Terms, parameters: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Gradient of every term by every parameter, averaged over processes (as DDP would), ``.grad`` untouched.

    Args:
        terms: scalars of one graph, which is freed.
        parameters: P tensors that require gradients.

    Returns:
        For each term P tensors; zeros where a term does not depend on a parameter.
    """
    gradients: dict[str, list[Tensor]] = {}
    for number, (name, term) in enumerate(terms.items(), start=1):
        found: Iterable[Tensor | None] = [None] * len(parameters)
        if term.requires_grad:
            found = torch.autograd.grad(term, parameters, retain_graph=number < len(terms), allow_unused=True)
        gradients[name] = [
            all_reduce_mean(torch.zeros_like(parameter) if gradient is None else gradient)
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
    return gradients


def accumulate_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Adds gradients to ``.grad``, as ``backward`` does."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A loss of a given value whose ``backward`` gives the gradients that a method has made by itself.

    What ``training_step`` returns then goes the way of every loss: it may be accumulated, scaled and clipped.

    Args:
        value: of the loss, ``[]``.
        parameters: P tensors that require gradients.
        gradients: P tensors.
    """
    product = torch.stack([(p * g.detach()).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
    return value.detach() + (product - product.detach())
