"""AdamR (W. Deng et al., "DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models", 2024, arXiv
2410.09344, section 4.2, after Z. Xie et al., "On the Overlooked Pitfalls of Weight Decay", 2020, arXiv 2011.11152).

Original code: vengdeng/DAREx, ``AdamR.py``. It keeps the anchor outside of the optimizer's state, so that a checkpoint
lacks it. AMSGrad is left out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import (
    advance_adam_state,
    check_at_least_zero,
    check_betas,
    is_loop_faster,
    is_sharded,
    shards,
)

__all__ = ["AdamR"]

PENALTIES = ("l2", "l1")


class AdamR(Optimizer):
    """Adam that pulls weights to where they began, so that what fine-tuning changes is small and can be dropped.

    In each step ``p <- p - lr * weight_decay / r * (p - anchor)``, where r is the root of the mean of the corrected
    second moments of all parameters that have a gradient (1 if that is 0); then Adam's move.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the averages of gradients and of squares.
        eps: is added to the root.
        weight_decay: strength of the pull; a group that is new in fine-tuning, such as a head, may have 0.
        anchor: tensors to be pulled to, in the order of the parameters; None is each parameter before its first step.
        penalty: ``"l2"``, or ``"l1"`` that pulls by the sign of the difference.

    Raises:
        ValueError: an argument is out of range, or ``anchor`` does not fit the parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        *,
        anchor: Sequence[Tensor] | None = None,
        penalty: str = "l2",
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        if penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "penalty": penalty}
        super().__init__(params, defaults)
        self._given: dict[Tensor, Tensor] = {}
        if anchor is not None:
            every = [p for group in self.param_groups for p in group["params"]]
            if [tensor.shape for tensor in anchor] != [p.shape for p in every]:
                raise ValueError(f"anchor must be {len(every)} tensors of the shapes of the parameters, in their order")
            self._given = dict(zip(every, anchor, strict=True))

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
        alike = [
            (step, params, group)
            for group in self.param_groups
            for step, params in advance_adam_state(self, group, self._extra_state).items()
        ]
        pulls = any(group["weight_decay"] > 0.0 for group in self.param_groups)
        sums, count = [], 0
        for step, params, group in alike:
            beta1, beta2 = group["betas"]
            grads, exp_avgs, exp_avg_sqs, _ = self._lists(params)
            torch._foreach_lerp_(exp_avgs, grads, 1.0 - beta1)
            torch._foreach_mul_(exp_avg_sqs, beta2)
            torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - beta2)
            if pulls:
                sums += [_sum(self.state[p]["exp_avg_sq"]) / (1.0 - beta2**step) for p in params]
                count += sum(p.numel() for p in params)
        r = torch.stack([value.to(sums[0].device) for value in sums]).sum().div_(count).sqrt_() if sums else None
        if r is not None:
            r = torch.where(r > 0.0, r, 1.0)
        for step, params, group in alike:
            _, *averages, anchors = self._lists(params)
            lists = [shards(params), *averages, anchors]
            if is_loop_faster(*lists):
                for tensors in zip(*lists, strict=True):
                    _update([[tensor] for tensor in tensors], r, step, group)
            else:
                _update(lists, r, step, group)
        return loss

    def _extra_state(self, p: Tensor) -> dict[str, Tensor]:
        return {"anchor": torch.empty_like(p).copy_(self._given.get(p, p))}

    def _lists(self, params: list[Tensor]) -> list[list[Tensor]]:
        """What this process holds of gradients, both averages, and anchors."""
        states = [self.state[p] for p in params]
        grads = shards([cast(Tensor, p.grad) for p in params])
        return [grads, *(shards([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq", "anchor"))]


def _sum(tensor: Tensor) -> Tensor:
    value = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return cast(Any, value).full_tensor() if is_sharded(value) else value


def _update(lists: list[list[Tensor]], r: Tensor | None, step: int, group: dict[str, Any]) -> None:
    params, exp_avgs, exp_avg_sqs, anchors = lists
    beta1, beta2 = group["betas"]
    if r is not None and group["weight_decay"] > 0.0:
        pulls = torch._foreach_sub(params, anchors)
        if group["penalty"] == "l1":
            torch._foreach_sign_(pulls)
        torch._foreach_mul_(pulls, (group["lr"] * group["weight_decay"] / r).to(params[0].device))
        torch._foreach_sub_(params, pulls)
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, (1.0 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(params, exp_avgs, roots, -group["lr"] / (1.0 - beta1**step))
