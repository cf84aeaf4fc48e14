"""Lamb (Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2).

Original code: tensorflow/addons, ``optimizers/lamb.py``; as there, phi of the paper is the identity, a zero norm means
a ratio of 1, and both corrections of bias are applied. The upper limit of the ratio is what the paper's phi allows for.
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
    fused_adamw_,
    is_loop_faster,
    norm,
    norms,
    shards,
)

__all__ = ["Lamb"]


class Lamb(Optimizer):
    r"""Adam whose step in every tensor is as long as the tensor, times the learning rate.

    With Adam's corrected averages, ``u = m / (sqrt(v) + eps) + weight_decay * p`` and
    ``p <- p - lr * ||p|| / ||u|| * u``; the ratio is 1 where a norm is 0.

    Args:
        params: parameters or groups of them. A group may say ``adapt=False``, then its ratio is 1: usual for biases and
            norm layers.
        lr: length of a step, relative to that of the tensor.
        betas: decay rates of the averages of gradients and of their squares.
        eps: is added to the root.
        weight_decay: is part of u, so it is rescaled too.
        bias_correction: whether the averages are divided by ``1 - beta ** step``.
        clamp: upper limit of the ratio; None for none.

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
        bias_correction: bool = True,
        clamp: float | None = None,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        if clamp is not None and not clamp > 0.0:
            raise ValueError(f"clamp must be above 0, or None for no limit, got {clamp}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "clamp": clamp,
            "adapt": True,
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
    lr, (beta1, beta2), eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    clamp = math.inf if group["clamp"] is None else group["clamp"]

    if is_loop_faster(params, grads, exp_avgs, exp_avg_sqs):
        counter = torch.tensor(float(step) if group["bias_correction"] else math.inf)
        for p, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            descent = torch.zeros_like(p)  # -u: what a step of rate 1 adds to zeros
            fused_adamw_(
                *shards([descent, grad, exp_avg, exp_avg_sq]),
                step=counter,
                lr=1.0,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
            )
            if weight_decay > 0.0:
                descent.add_(p, alpha=-weight_decay)
            ratio = 1.0
            if group["adapt"]:
                length, descent_length = norm(p).item(), norm(descent).item()
                if length > 0.0 and descent_length > 0.0:
                    ratio = min(length / descent_length, clamp)
            p.add_(descent, alpha=lr * ratio)
        return

    torch._foreach_lerp_(exp_avgs, grads, 1.0 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - beta2)
    correction1, correction2 = 1.0, 1.0
    if group["bias_correction"]:
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, math.sqrt(correction2))
    torch._foreach_add_(roots, eps)
    torch._foreach_mul_(roots, correction1)
    updates = torch._foreach_div(exp_avgs, roots)
    if weight_decay > 0.0:
        torch._foreach_add_(updates, params, alpha=weight_decay)
    if group["adapt"]:
        lengths, update_lengths = norms(params), norms(updates)
        usable = (lengths > 0.0) & (update_lengths > 0.0)
        ratios = torch.where(usable, (lengths / update_lengths).clamp(max=clamp), 1.0)
        torch._foreach_mul_(shards(updates), ratios.unbind())
    torch._foreach_add_(params, updates, alpha=-lr)
