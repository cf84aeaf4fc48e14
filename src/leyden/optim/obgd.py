"""ObGD (M. Elsayed, G. Vasan, A. R. Mahmood, "Streaming Deep Reinforcement Learning Finally Works", 2024, arXiv
2410.14606, algorithm 3), and its form with Adam's second average.

Original code: mohmdelsayed/streaming-drl, ``optim.py``. There the counter of the second average is an attribute, which
a checkpoint loses.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import check_at_least_zero, is_sharded, shards, with_gradient

__all__ = ["AdaptiveObGD", "ObGD"]


class ObGD(Optimizer):
    """Gradient descent with eligibility traces, for one sample at a time, whose step cannot overshoot.

    ``p.grad`` is the gradient of *minus* the value (or of minus log pi): ``e <- gamma * lamda * e + p.grad``. With Z
    the sum of ``|e|`` over all parameters and ``M = lr * kappa * max(|delta|, 1) * Z``, the step is ``p <- p - lr /
    max(M, 1) * delta * e``. Parameters without gradient keep a fading trace.

    Args:
        params: parameters or groups of them.
        lr: step size where that does not overshoot; 1 is meant to fit all problems.
        gamma: discount of future rewards.
        lamda: decay of the traces; 0 for none.
        kappa: how far below overshooting the step stays; 0 sets no bound, which is TD(lambda).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, *, gamma: float = 0.99, lamda: float = 0.8, kappa: float = 2.0
    ) -> None:
        self._check(lr=lr, gamma=gamma, lamda=lamda, kappa=kappa)
        super().__init__(params, {"lr": lr, "gamma": gamma, "lamda": lamda, "kappa": kappa})

    @staticmethod
    def _check(*, gamma: float, lamda: float, **settings: float) -> None:
        check_at_least_zero(**settings)
        for name, value in (("gamma", gamma), ("lamda", lamda)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, delta: float | Tensor, reset: bool | Tensor = False
    ) -> Any:
        """Makes one step; returns what the closure, if there is one, returned.

        Args:
            closure: computes the gradients.
            delta: the error of the prediction, such as ``reward + gamma * next_value - value``; one number.
            reset: whether the traces end with this step, as at the end of an episode.

        Raises:
            ValueError: ``delta`` is not one number.
            RuntimeError: a gradient is sparse, or a parameter complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        delta = delta if isinstance(delta, Tensor) else torch.tensor(delta, dtype=torch.float64)
        if delta.numel() != 1:
            raise ValueError(f"delta must be one number, got shape {tuple(delta.shape)}")
        params = [self._advance_traces(group) for group in self.param_groups]
        if not any(params):
            return loss
        first = next(p for group_params in params for p in group_params)
        delta = delta.detach().reshape(()).to(first.device, torch.promote_types(first.dtype, torch.float32))
        directions = [
            self._directions(group_params, group, delta)
            for group, group_params in zip(self.param_groups, params, strict=True)
        ]
        size = torch.stack([_sum_of_magnitudes(d) for group in directions for d in group]).sum()
        for group, group_params, group_directions in zip(self.param_groups, params, directions, strict=True):
            if not group_params:
                continue
            bound = group["lr"] * group["kappa"] * delta.abs().clamp(min=1.0) * size
            rate = group["lr"] / bound.clamp(min=1.0)
            torch._foreach_sub_(shards(group_params), torch._foreach_mul(shards(group_directions), rate * delta))
            traces = shards([self.state[p]["eligibility_trace"] for p in group_params])
            if isinstance(reset, Tensor):
                torch._foreach_mul_(traces, 1.0 - reset.reshape(()).to(delta))
            elif reset:
                torch._foreach_zero_(traces)
        return loss

    def _advance_traces(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group that have a trace, after it took in the gradient."""
        with_gradients = with_gradient(self, group)
        for p in with_gradients:
            if "eligibility_trace" not in self.state[p]:
                self.state[p]["eligibility_trace"] = torch.zeros_like(p)
        params = [p for p in group["params"] if p in self.state]
        if params:
            traces = shards([self.state[p]["eligibility_trace"] for p in params])
            torch._foreach_mul_(traces, group["gamma"] * group["lamda"])
        if with_gradients:
            traces = shards([self.state[p]["eligibility_trace"] for p in with_gradients])
            torch._foreach_add_(traces, shards([cast(Tensor, p.grad) for p in with_gradients]))
        return params

    def _directions(self, params: list[Tensor], group: dict[str, Any], delta: Tensor) -> list[Tensor]:
        return [self.state[p]["eligibility_trace"] for p in params]


class AdaptiveObGD(ObGD):
    """`ObGD` whose traces are divided by the root mean square of ``delta * e``, entry by entry, as in Adam.

    ``v <- beta2 * v + (1 - beta2) * (delta * e)^2``, corrected by ``1 - beta2^n``; both Z and the step have ``e /
    sqrt(v + eps)`` in the place of e.

    Args:
        params: parameters or groups of them.
        lr: as in `ObGD`.
        gamma: as in `ObGD`.
        lamda: as in `ObGD`.
        kappa: as in `ObGD`.
        beta2: decay rate of v.
        eps: is added to v, within the root.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        gamma: float = 0.99,
        lamda: float = 0.8,
        kappa: float = 2.0,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        self._check(lr=lr, gamma=gamma, lamda=lamda, kappa=kappa, eps=eps)
        if not 0.0 <= beta2 < 1.0:
            raise ValueError(f"beta2 must lie in [0, 1), got {beta2}")
        defaults = {"lr": lr, "gamma": gamma, "lamda": lamda, "kappa": kappa, "beta2": beta2, "eps": eps}
        Optimizer.__init__(self, params, defaults)

    def _directions(self, params: list[Tensor], group: dict[str, Any], delta: Tensor) -> list[Tensor]:
        beta2, eps = group["beta2"], group["eps"]
        directions = []
        for p in params:
            state = self.state[p]
            if "step" not in state:
                state["step"] = 0
                state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] += 1
            trace = state["eligibility_trace"]
            local_trace, local_exp_avg_sq = shards([trace, state["exp_avg_sq"]])
            change = local_trace * delta.to(trace.dtype)
            local_exp_avg_sq.mul_(beta2).addcmul_(change, change, value=1.0 - beta2)
            directions.append(trace / (state["exp_avg_sq"] / (1.0 - beta2 ** state["step"]) + eps).sqrt())
        return directions


def _sum_of_magnitudes(tensor: Tensor) -> Tensor:
    """Of the whole tensor, also where processes share it; float32 at least, ``[]``."""
    value = torch.linalg.vector_norm(tensor, 1, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return cast(Any, value).full_tensor() if is_sharded(value) else value
