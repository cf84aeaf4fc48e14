"""Norm of a gradient, to be made small by training (X. Zhao, H. Zhang, X. Hu, "Penalizing Gradient Norm for Efficiently
Improving Generalization in Deep Learning", 2022, arXiv 2202.03599, equation 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leyden.core.distributed import all_reduce_mean, world_size

__all__ = ["gradient_norm"]


def gradient_norm(scalar: Tensor, params: Sequence[Tensor], *, create_graph: bool = True) -> Tensor:
    """Norm of the gradient of a scalar by all parameters together, ``sqrt(sum ||g||^2 + 1e-12)``.

    On many processes it is the norm of their mean gradient, the same on each; the mean over processes of its own
    gradients, which DDP makes, is the gradient of that norm.

    Args:
        scalar: of one graph, which is kept.
        params: P tensors that require gradients; those that the scalar does not depend on have gradient 0.
        create_graph: whether the norm can be differentiated.

    Returns:
        A scalar, float32 at least.

    Raises:
        ValueError: there are no parameters, or the scalar depends on none of them.
    """
    if not params:
        raise ValueError("params must hold at least one tensor, got none")
    if not scalar.requires_grad:
        raise ValueError("scalar must depend on params, but requires no gradient")
    with torch.autocast(scalar.device.type, enabled=False):  # as in the backward pass of a step
        found = torch.autograd.grad(scalar, params, retain_graph=True, create_graph=create_graph, allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        raise ValueError("scalar must depend on params, but none of them is in its graph")
    if world_size() > 1:
        gradients = [gradient + (all_reduce_mean(gradient) - gradient.detach()) for gradient in gradients]
    squares = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum() for gradient in gradients]
    return (torch.stack(squares).sum() + 1e-12).sqrt()  # the root of 0 has no gradient
