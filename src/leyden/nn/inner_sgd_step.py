"""A step of SGD that a gradient can flow through (C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast
Adaptation of Deep Networks", 2017, arXiv 1703.03400, equation 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["inner_sgd_step"]


def inner_sgd_step(
    params: Mapping[str, Tensor], loss: Tensor, *, lr: float, create_graph: bool = True
) -> dict[str, Tensor]:
    """Parameters after a step of SGD, as functions of those before it; see `torch.func.functional_call`.

    Args:
        params: parameters by name.
        loss: scalar, a function of them.
        lr: size of the step.
        create_graph: whether gradients flow through the gradient too; without it they are first order.

    Returns:
        New tensors by name; a parameter on which the loss does not depend stays what it is.

    Raises:
        ValueError: the loss is no scalar, or ``lr`` is negative.
    """
    if loss.ndim:
        raise ValueError(f"loss must be a scalar, got the shape {tuple(loss.shape)}")
    if not lr >= 0.0:
        raise ValueError(f"lr must be at least 0, got {lr}")
    gradients = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: p if gradient is None else p - lr * gradient
        for (name, p), gradient in zip(params.items(), gradients, strict=True)
    }
