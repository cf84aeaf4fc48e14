"""SPAM (T. Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training", 2025, algorithm 1).

Original code: TianjinYellow/SPAM-Optimizer, ``galore_torch/SPAM.py``. There p.grad is clipped in place, and the
counters are attributes of the optimizer, which a checkpoint loses. Its sparse momentum is left out.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import (
    advance_adam_state,
    check_at_least_zero,
    check_betas,
    foreach_adamw_,
    fused_adamw_,
    is_loop_faster,
    pieces,
    shards,
)

__all__ = ["SPAM"]


class SPAM(Optimizer):
    """Adam that clips entries far above their own running root mean square, and starts its averages anew at intervals.

    In step n of a tensor, with v from the step before: where ``g^2 > threshold * v``, ``g <- sign(g) * sqrt(threshold
    * v)``. Every ``reset_interval`` steps both averages become 0 (the corrections of bias go on), and the learning rate
    grows anew from a hundredth, along half a cosine of ``warmup_steps``. An entry without a gradient between a reset
    and the first clipped step has v = 0 and gets none until the next reset, as in the original code.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of the averages.
        eps: is added to the root, before it is corrected.
        weight_decay: decoupled, after the step.
        threshold: largest ``g^2 / v``; 0 for no clipping.
        reset_interval: steps between two resets; 0 for none.
        warmup_steps: steps of the growth after a reset; the first steps of the run have none.
        accumulate_steps: steps without clipping, at the start and after a reset, until v can be trusted.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        threshold: float = 5000.0,
        reset_interval: int = 500,
        warmup_steps: int = 150,
        accumulate_steps: int = 20,
    ) -> None:
        check_at_least_zero(
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            threshold=threshold,
            reset_interval=reset_interval,
            warmup_steps=warmup_steps,
            accumulate_steps=accumulate_steps,
        )
        check_betas(betas)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "threshold": threshold,
            "reset_interval": reset_interval,
            "warmup_steps": warmup_steps,
            "accumulate_steps": accumulate_steps,
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
        for group in self.param_groups:
            for step, params in advance_adam_state(self, group).items():
                _update(
                    params,
                    [p.grad for p in params],  # type: ignore[misc]
                    [self.state[p]["exp_avg"] for p in params],
                    [self.state[p]["exp_avg_sq"] for p in params],
                    step,
                    group,
                )
        return loss


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: int,
    group: dict[str, Any],
) -> None:
    beta1, beta2 = group["betas"]
    threshold, interval = group["threshold"], group["reset_interval"]
    since_reset = step % interval if interval else step
    decay = 1.0 - group["lr"] * group["weight_decay"]
    lr = group["lr"]
    if interval and step >= interval:
        lr *= _warmup(since_reset, group["warmup_steps"])
        if since_reset == 0:
            torch._foreach_zero_(exp_avgs)
            torch._foreach_zero_(exp_avg_sqs)
    clips = threshold > 0.0 and since_reset >= group["accumulate_steps"]
    # this eps is beside the uncorrected root, that of AdamW beside the corrected one
    eps = group["eps"] / math.sqrt(1.0 - beta2**step)

    if is_loop_faster(params, grads, exp_avgs, exp_avg_sqs):
        counter = torch.tensor(float(step))
        for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            for p, grad, exp_avg, exp_avg_sq in pieces(*shards(tensors)):
                if clips:
                    limit = torch.mul(exp_avg_sq, threshold).sqrt_()
                    grad = torch.minimum(grad, limit).maximum(limit.neg_())
                fused_adamw_(p, grad, exp_avg, exp_avg_sq, step=counter, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
                if decay != 1.0:
                    p.mul_(decay)
        return

    if clips:
        limits = torch._foreach_mul(exp_avg_sqs, threshold)
        torch._foreach_sqrt_(limits)
        grads = torch._foreach_minimum(grads, limits)  # type: ignore[assignment]
        torch._foreach_neg_(limits)
        torch._foreach_maximum_(grads, limits)
    foreach_adamw_(params, grads, exp_avgs, exp_avg_sqs, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
    torch._foreach_mul_(params, decay)


def _warmup(steps: int, warmup_steps: int) -> float:
    """Share of the learning rate in a step, given the number of steps from the reset to it."""
    if steps >= warmup_steps:
        return 1.0
    return 1.0 - 0.99 * (1.0 + math.cos(math.pi * steps / (warmup_steps + 1))) / 2.0
