"""Stable-SPAM (T. Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam", 2025, algorithm 1).

Original code: TianjinYellow/StableSPAM, ``galore_torch/stablespam.py``. There the step of a reset still uses the old
averages, and one counter serves Adam and the statistics, so that after a reset their corrections are those of a first
step and nothing is clipped for long; here, as in the paper, each has its own. There also p.grad is clipped in place.
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
    largest_magnitude,
    norm,
    norms,
    pieces,
    restore_precision,
    shards,
)

__all__ = ["StableSPAM"]


class StableSPAM(Optimizer):
    """Adam on gradients whose spikes are clipped and whose norm is evened out, per tensor, with resets of its averages.

    In step n: entries above the running mean of the largest magnitude ``max|g|`` are scaled by one factor, so that the
    largest lies on it (AdaClip); the gradient is divided by its norm and multiplied by running mean over running root
    mean square of the norms (AdaGN); every ``reset_interval`` steps Adam starts anew; then a step of AdamW. As every
    tensor's gradient has a norm of about 1 then, ``lr`` does not mean what it does after clipping the global norm.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of Adam's averages.
        eps: is added to the two roots.
        weight_decay: decoupled.
        gammas: decay rates of the averages of the norm, of its square, and of the largest magnitude.
        reset_interval: steps between two resets; 0 for none.
        total_steps: T; if given, ``betas[0]`` and ``gammas[0]`` are multiplied in step n by half a cosine from 1 to
            ``eta_min``, ``eta_min + (1 - eta_min) * (1 + cos(pi * n / (T + 1))) / 2``.
        eta_min: where that cosine ends, and stays after T.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        gammas: tuple[float, float, float] = (0.7, 0.9, 0.999),
        reset_interval: int = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay, reset_interval=reset_interval)
        check_betas(betas)
        check_betas(gammas, "gammas", 3)
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, or None for constant betas, got {total_steps}")
        if not 0.0 <= eta_min <= 1.0:
            raise ValueError(f"eta_min must lie in [0, 1], got {eta_min}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gammas": gammas,
            "reset_interval": reset_interval,
            "total_steps": total_steps,
            "eta_min": eta_min,
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
            for step, params in advance_adam_state(self, group, _grad_stats).items():
                _update(
                    params,
                    [p.grad for p in params],  # type: ignore[misc]
                    [self.state[p]["exp_avg"] for p in params],
                    [self.state[p]["exp_avg_sq"] for p in params],
                    [self.state[p]["grad_stats"] for p in params],
                    step,
                    group,
                )
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; the statistics of half-precision parameters stay as precise as they were saved."""
        super().load_state_dict(state_dict)
        restore_precision(self, state_dict, "grad_stats")


def _grad_stats(p: Tensor) -> dict[str, Tensor]:
    dtype = torch.promote_types(p.dtype, torch.float32)
    return {"grad_stats": torch.zeros(3, dtype=dtype, device=p.device)}  # of norm, its square, maximum


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    grad_stats: list[Tensor],
    step: int,
    group: dict[str, Any],
) -> None:
    lr, (beta1, beta2), eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    gamma1, gamma2, gamma3 = group["gammas"]
    if group["total_steps"] is not None:
        angle = math.pi * min(1.0, step / (group["total_steps"] + 1))
        scale = group["eta_min"] + (1.0 - group["eta_min"]) * (1.0 + math.cos(angle)) / 2.0
        beta1, gamma1 = scale * beta1, scale * gamma1
    correction1, correction2, correction3 = (1.0 - gamma**step for gamma in (gamma1, gamma2, gamma3))
    adam_step = step
    if group["reset_interval"] and step >= group["reset_interval"]:
        adam_step = step % group["reset_interval"] + 1
        if adam_step == 1:
            torch._foreach_zero_(exp_avgs)
            torch._foreach_zero_(exp_avg_sqs)

    if is_loop_faster(params, grads, exp_avgs, exp_avg_sqs):
        counter = torch.tensor(float(adam_step))
        for p, grad, exp_avg, exp_avg_sq, stats in zip(params, grads, exp_avgs, exp_avg_sqs, grad_stats, strict=True):
            mean, mean_sq, mean_max = stats.tolist()
            largest = largest_magnitude(grad).item()
            mean_max = gamma3 * mean_max + (1.0 - gamma3) * largest
            limit = mean_max / correction3
            if largest > limit * (1.0 + 4.0 * torch.finfo(stats.dtype).eps):  # more than the rounding of the average
                grad = torch.where(grad.abs() > limit, grad * (limit / largest), grad)
            length = norm(grad).item()
            mean = gamma1 * mean + (1.0 - gamma1) * length
            mean_sq = gamma2 * mean_sq + (1.0 - gamma2) * length**2
            stats.copy_(torch.tensor([mean, mean_sq, mean_max], dtype=stats.dtype))
            target = mean / correction1 / (math.sqrt(mean_sq / correction2) + eps)
            factor = target / length if length > 0.0 else 1.0
            for p_, grad_, exp_avg_, exp_avg_sq_ in pieces(*shards([p, grad, exp_avg, exp_avg_sq])):
                fused_adamw_(
                    p_,
                    grad_ * factor,
                    exp_avg_,
                    exp_avg_sq_,
                    step=counter,
                    lr=lr,
                    beta1=beta1,
                    beta2=beta2,
                    eps=eps,
                    weight_decay=weight_decay,
                )
        return

    means, mean_sqs, mean_maxima = torch.stack(grad_stats, 1)  # each [T], for T tensors
    maxima = torch.stack([largest_magnitude(grad) for grad in grads]).to(means.dtype)
    mean_maxima = gamma3 * mean_maxima + (1.0 - gamma3) * maxima
    limits = mean_maxima / correction3
    clipped = [
        torch.where(grad.abs() > limit, grad * shrink, grad)
        for grad, limit, shrink in zip(grads, limits, limits / maxima, strict=True)
    ]
    lengths = norms(clipped)
    means = gamma1 * means + (1.0 - gamma1) * lengths
    mean_sqs = gamma2 * mean_sqs + (1.0 - gamma2) * lengths.square()
    torch._foreach_copy_(grad_stats, torch.stack([means, mean_sqs, mean_maxima], 1).unbind())
    targets = means / correction1 / ((mean_sqs / correction2).sqrt() + eps)
    torch._foreach_mul_(shards(clipped), torch.where(lengths > 0.0, targets / lengths, 1.0).unbind())
    foreach_adamw_(
        params,
        clipped,
        exp_avgs,
        exp_avg_sqs,
        step=adam_step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
