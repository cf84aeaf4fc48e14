"""AdaGrad-Norm (R. Ward, X. Wu, L. Bottou, "AdaGrad Stepsizes: Sharp Convergence over Nonconvex Landscapes", 2019;
T. T.-K. Lau, H. Liu, M. Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", 2024, arXiv
2402.11215).

Original code: timlautk/AdAdaGrad, ``adagradnorm.py``. It has one sum per row, where the papers have one in all; adds
to the sums of a bias those of the weight before it; and its weight decay adds a multiple of the gradient. The latter
two are left out here.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import check_at_least_zero, is_loop_faster, norms, restore_precision, shards, with_gradient

__all__ = ["AdaGradNorm"]


class AdaGradNorm(Optimizer):
    """SGD whose rate falls with the squared norms of all gradients so far.

    ``g = grad + weight_decay * p``; ``A <- A + |g|^2``, summed over all parameters; ``d = g``, or, with momentum,
    ``d <- momentum * d + (1 - momentum) * g`` from 0; ``p <- p - lr * d / (sqrt(A) + eps)``. `torch.optim.Adagrad` has
    one sum for each coordinate.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: share of d that a step keeps.
        weight_decay: factor of p in g.
        initial_accumulator_value: A before the first step.
        eps: is added to the root.
        granularity: ``"global"``: one A; ``"row"``: one for each index of the first dimension of each parameter.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        initial_accumulator_value: float = 1e-2,
        eps: float = 1e-10,
        granularity: str = "global",
    ) -> None:
        check_at_least_zero(
            lr=lr, weight_decay=weight_decay, initial_accumulator_value=initial_accumulator_value, eps=eps
        )
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if granularity not in ("global", "row"):
            raise ValueError(f"granularity must be 'global' or 'row', got {granularity!r}")
        self.granularity = granularity
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure, if there is one, returned.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_group = [(group, with_gradient(self, group)) for group in self.param_groups]
        directions = {p: _direction(p, group["weight_decay"]) for group, params in by_group for p in params}
        if not directions:
            return loss
        if self.granularity == "global":  # that of all, also for parameters without gradient
            total = norms([*directions.values()]).square().sum()
            squares = {p: total for group in self.param_groups for p in group["params"]}
        else:
            squares = {p: _row_squares(g) for p, g in directions.items()}
        for group, params in by_group:
            for p in group["params"]:
                if p in squares:
                    state = self.state[p]
                    if "sum" not in state:
                        state["sum"] = torch.full_like(squares[p], group["initial_accumulator_value"])
                    state["sum"] += squares[p]
            if params:
                _update(params, [directions[p] for p in params], [self.state[p] for p in params], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; the sums of half-precision parameters stay as precise as they were saved."""
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict, "sum")


def _direction(p: Tensor, weight_decay: float) -> Tensor:
    grad = cast(Tensor, p.grad)
    return grad.add(p, alpha=weight_decay) if weight_decay > 0.0 else grad


def _row_squares(g: Tensor) -> Tensor:
    """Float32 at least, ``[rows, 1, ...]``."""
    squares = g.to(torch.promote_types(g.dtype, torch.float32)).square()
    return squares.sum(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else squares


def _update(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    lr, momentum, eps = group["lr"], group["momentum"], group["eps"]
    roots = [state["sum"].sqrt().add_(eps) for state in states]
    if momentum > 0.0:
        for p, state in zip(params, states, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
        buffers = [state["momentum_buffer"] for state in states]
        torch._foreach_lerp_(buffers, grads, 1.0 - momentum)
        grads = buffers
    if is_loop_faster(params, grads):
        for p, d, root in zip(shards(params), shards(grads), shards(roots), strict=True):
            p.addcdiv_(d, root, value=-lr)
    else:
        torch._foreach_add_(shards(params), torch._foreach_div(shards(grads), shards(roots)), alpha=-lr)
