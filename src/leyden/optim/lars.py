"""Lars (Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional Networks", 2017, algorithm 1).

The decay is part of the direction, as in the paper's equation 6; momentum follows `torch.optim.SGD`. The Lars of the
Lamb paper (algorithm 1 there) has another scale: no trust coefficient, and the ratio is taken after the momentum.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import check_at_least_zero, is_loop_faster, norm, norms, pieces, shards, with_gradient

__all__ = ["Lars"]


class Lars(Optimizer):
    """SGD with momentum whose gradient is rescaled, tensor by tensor, to the length of the tensor.

    ``r = trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)``, 1 where a norm is 0;
    ``d = r * (g + weight_decay * p)``; ``b <- momentum * b + d`` (d in the first step); ``p <- p - lr * b``, or
    ``p - lr * (d + momentum * b)`` with Nesterov's momentum.

    Args:
        params: parameters or groups of them. A group may say ``adapt=False``, then r is 1: usual for biases and norm
            layers.
        lr: learning rate.
        momentum: share of the buffer b that a step keeps.
        weight_decay: factor of p in the direction.
        nesterov: whether the momentum is Nesterov's.
        trust_coefficient: length of d relative to that of p.
        eps: is added to the denominator of r.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        check_at_least_zero(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient, eps=eps)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0, got momentum=0.0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
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
            params = with_gradient(self, group)
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    # momentum * 0 + d is the d of the first step
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            if params:
                buffers = [self.state[p]["momentum_buffer"] for p in params]
                _update(params, [p.grad for p in params], buffers, group)  # type: ignore[misc]
        return loss


def _update(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    lr, momentum, weight_decay, eps = group["lr"], group["momentum"], group["weight_decay"], group["eps"]
    trust_coefficient, nesterov = group["trust_coefficient"], group["nesterov"]

    if is_loop_faster(params, grads, buffers):
        for p, grad, buffer in zip(params, grads, buffers, strict=True):
            ratio = 1.0
            if group["adapt"]:
                length, grad_length = norm(p).item(), norm(grad).item()
                if length > 0.0 and grad_length > 0.0:
                    ratio = trust_coefficient * length / (grad_length + weight_decay * length + eps)
            for p_, grad_, buffer_ in pieces(*shards([p, grad, buffer])):
                buffer_.mul_(momentum).add_(grad_, alpha=ratio)
                if weight_decay > 0.0:
                    buffer_.add_(p_, alpha=ratio * weight_decay)
                if nesterov:
                    p_.mul_(1.0 - lr * ratio * weight_decay).add_(grad_, alpha=-lr * ratio)
                p_.add_(buffer_, alpha=-lr * momentum if nesterov else -lr)
        return

    directions = torch._foreach_add(grads, params, alpha=weight_decay)
    if group["adapt"]:
        lengths, grad_lengths = norms(params), norms(grads)
        usable = (lengths > 0.0) & (grad_lengths > 0.0)
        ratios = trust_coefficient * lengths / (grad_lengths + weight_decay * lengths + eps)
        torch._foreach_mul_(shards(directions), torch.where(usable, ratios, 1.0).unbind())
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, directions)
    if nesterov:
        torch._foreach_add_(directions, buffers, alpha=momentum)
        torch._foreach_add_(params, directions, alpha=-lr)
    else:
        torch._foreach_add_(params, buffers, alpha=-lr)
