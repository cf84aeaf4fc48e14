"""Dependency of two variables by the Wasserstein distance (S. Ozair, C. Lynch, Y. Bengio, A. van den Oord, S. Levine,
P. Sermanet, "Wasserstein Dependency Measure for Representation Learning", 2019, arXiv 1903.11780).

The critic that makes the scores must be Lipschitz; `lipschitz_penalty` asks for it (I. Gulrajani et al., "Improved
Training of Wasserstein GANs", 2017, equation 3).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["WassersteinDependency", "lipschitz_penalty", "wasserstein_dependency_loss"]


def wasserstein_dependency_loss(scores: Tensor, *, form: str = "nce") -> Tensor:
    """Minus an estimate of the dependency of x and y, from the scores of all pairs of a batch.

    ``"nce"`` is the cross entropy of finding ``y_i`` for ``x_i``, less ``log N``: at least ``-log N``. ``"dual"`` is
    the mean score of pairs that do not belong together minus that of those that do. Equal scores give 0.

    Args:
        scores: ``[N, N]``, of ``(x_i, y_j)`` in row i and column j; computed with in float32 at least.
        form: ``"nce"`` or ``"dual"``.

    Raises:
        ValueError: ``scores`` is no square matrix of two rows or more, or another ``form``.
    """
    if form not in ("nce", "dual"):
        raise ValueError(f"form must be 'nce' or 'dual', got {form!r}")
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"scores must have shape [N, N] with N of 2 or more, got {tuple(scores.shape)}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    num_rows, together = len(scores), scores.diagonal()
    if form == "nce":
        return (scores.logsumexp(1) - together).mean() - math.log(num_rows)
    return (scores.sum() - together.sum()) / (num_rows * (num_rows - 1)) - together.mean()


class WassersteinDependency(nn.Module):
    """Module twin of `wasserstein_dependency_loss`."""

    def __init__(self, *, form: str = "nce") -> None:
        super().__init__()
        self.form = form

    def forward(self, scores: Tensor) -> Tensor:
        """Returns the loss."""
        return wasserstein_dependency_loss(scores, form=self.form)


def lipschitz_penalty(
    critic: Callable[..., Tensor], *inputs: Tensor, one_sided: bool = False, target: float = 1.0
) -> Tensor:
    """Mean squared distance of the norm of the critic's gradient, by all inputs of a row together, from ``target``.

    The gradient is taken in float32 at least, without autocast, and can be differentiated by the critic's parameters.

    Args:
        critic: maps the inputs to one score per row, ``[N]``, in which no other row takes part.
        inputs: tensors ``[N, ...]`` of real numbers, at which the gradient is taken; get none themselves.
        one_sided: whether norms below ``target`` cost nothing.
        target: the Lipschitz constant.

    Raises:
        ValueError: the inputs have not one number of rows, or hold no real numbers; the scores are not one per row; or
            the critic is a module with a batch norm.
    """
    sizes = [len(x) if x.ndim else 0 for x in inputs]
    if len(set(sizes)) != 1 or 0 in sizes:
        raise ValueError(f"inputs must have one number of rows, 1 or more, got {sizes}")
    if wrong := [x.dtype for x in inputs if not x.is_floating_point()]:
        raise ValueError(f"inputs must hold real numbers, got {wrong[0]}")
    if isinstance(critic, nn.Module) and any(isinstance(layer, _BatchNorm) for layer in critic.modules()):
        raise ValueError("critic must treat each row by itself, but has a batch norm: use another norm")
    leaves = [x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_() for x in inputs]
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        scores = critic(*leaves)
        if scores.shape != (sizes[0],):
            raise ValueError(f"critic must give one score per row, [{sizes[0]}], got {tuple(scores.shape)}")
        gradients = torch.autograd.grad(scores.sum(), leaves, create_graph=True, materialize_grads=True)
    squares = torch.stack([gradient.reshape(sizes[0], -1).square().sum(1) for gradient in gradients]).sum(0)  # [N]
    excess = (squares + 1e-12).sqrt() - target  # the root of 0 has no gradient
    return (excess.clamp(min=0.0) if one_sided else excess).square().mean()
