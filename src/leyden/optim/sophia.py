"""Sophia (H. Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", 2023).

Algorithm 3, with the estimators of algorithms 1 (Hutchinson) and 2 (Gauss-Newton-Bartlett). Original code:
Liuhong99/Sophia, ``sophia.py``, which leaves the factor B out of its state and multiplies by it in every step instead.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from leyden.optim._common import (
    check_at_least_zero,
    check_betas,
    is_loop_faster,
    pieces,
    shards,
    with_gradient,
)

__all__ = ["Sophia", "gnb_labels", "hutchinson"]


class Sophia(Optimizer):
    """Momentum divided by an estimate of the Hessian's diagonal, and clipped to the learning rate, entry by entry.

    ``p <- p * (1 - lr * weight_decay)``, ``m <- beta1 * m + (1 - beta1) * g``, then
    ``p <- p - lr * clip(m / max(rho * h, eps), -1, 1)``. Every few steps `update_hessian` moves h, which starts from 0:
    without it a step is ``lr * sign(m)``. `leyden.callbacks.SophiaHessian` calls it.

    Args:
        params: parameters or groups of them.
        lr: learning rate, and the largest change of an entry.
        betas: decay rates of m and h.
        rho: scale of h; the authors tune it so that `win_rate` stays between 0.1 and 0.5.
        weight_decay: decoupled.
        eps: smallest denominator.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        eps: float = 1e-15,
    ) -> None:
        check_at_least_zero(lr=lr, rho=rho, weight_decay=weight_decay)
        check_betas(betas)
        if not eps > 0.0:
            raise ValueError(f"eps must be above 0, got {eps}")
        defaults = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay, "eps": eps}
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
            if params:
                states = [self._state(p) for p in params]
                exp_avgs, hessians = [s["exp_avg"] for s in states], [s["hessian"] for s in states]
                _update(params, [p.grad for p in params], exp_avgs, hessians, group)  # type: ignore[misc]
        return loss

    @torch.no_grad()
    def update_hessian(self, estimates: Sequence[Tensor] | None = None, *, batch_size: int = 1) -> None:
        """Moves the running mean h towards an estimate of the Hessian's diagonal.

        Args:
            estimates: one per parameter, in the order of the groups, such as `hutchinson` makes. If None it is
                ``batch_size * p.grad ** 2``, which is Gauss-Newton-Bartlett where ``p.grad`` is the gradient of the
                mean cross entropy for labels that `gnb_labels` drew; parameters without gradient are left out.
            batch_size: number of predictions in that mean: sequences times tokens, of all processes.

        Raises:
            ValueError: the number of estimates is not that of the parameters, or they come with a ``batch_size``.
            RuntimeError: a gradient is sparse, or a parameter complex.
        """
        if batch_size < 1 or (estimates is not None and batch_size != 1):
            raise ValueError(
                f"batch_size must be at least 1, and is for gradients, not for estimates; got {batch_size}"
            )
        if estimates is None:
            for group in self.param_groups:
                beta2 = group["betas"][1]
                for p in with_gradient(self, group):
                    grad = cast(Tensor, p.grad)
                    self._state(p)["hessian"].mul_(beta2).addcmul_(grad, grad, value=(1.0 - beta2) * batch_size)
            return
        params = [(p, group["betas"][1]) for group in self.param_groups for p in group["params"]]
        if len(estimates) != len(params):
            raise ValueError(
                f"estimates must hold one tensor for each of {len(params)} parameters, got {len(estimates)}"
            )
        for (p, beta2), estimate in zip(params, estimates, strict=True):
            self._state(p)["hessian"].lerp_(estimate.to(p.dtype), 1.0 - beta2)

    @torch.no_grad()
    def win_rate(self) -> Tensor:
        """Share of the entries whose step is not clipped, ``|m| < rho * h``, among this process's; ``[]``."""
        inside, total = torch.zeros(()), 0
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    exp_avg, hessian = shards([self.state[p]["exp_avg"], self.state[p]["hessian"]])
                    inside = inside.to(p.device) + (exp_avg.abs() < group["rho"] * hessian).sum()
                    total += exp_avg.numel()
        return inside / max(total, 1)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
            state["hessian"] = torch.zeros_like(p)
        return state


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    hessians: list[Tensor],
    group: dict[str, Any],
) -> None:
    lr, (beta1, _), rho = group["lr"], group["betas"], group["rho"]
    decay = 1.0 - lr * group["weight_decay"]
    eps = max(group["eps"], torch.finfo(params[0].dtype).tiny)  # 1e-15 is 0 in float16, and 0 / 0 no number

    if is_loop_faster(params, grads, exp_avgs, hessians):
        for tensors in zip(params, grads, exp_avgs, hessians, strict=True):
            for p, grad, exp_avg, hessian in pieces(*shards(tensors)):
                exp_avg.lerp_(grad, 1.0 - beta1)
                ratio = torch.mul(hessian, rho).clamp_(min=eps)
                torch.div(exp_avg, ratio, out=ratio).clamp_(-1.0, 1.0)
                p.mul_(decay).add_(ratio, alpha=-lr)
        return

    torch._foreach_lerp_(exp_avgs, grads, 1.0 - beta1)
    denominators = torch._foreach_mul(hessians, rho)
    torch._foreach_clamp_min_(denominators, eps)
    ratios = torch._foreach_div(exp_avgs, denominators)
    torch._foreach_clamp_min_(ratios, -1.0)
    torch._foreach_clamp_max_(ratios, 1.0)
    torch._foreach_mul_(params, decay)
    torch._foreach_add_(params, ratios, alpha=-lr)


def gnb_labels(logits: Tensor, generator: torch.Generator | None = None, *, uniforms: Tensor | None = None) -> Tensor:
    """Draws labels from the model's own softmax, for the Gauss-Newton-Bartlett estimate (algorithm 2, line 4).

    Args:
        logits: scores before softmax, ``[..., C]``, C >= 2.
        generator: source of the draws, on any device; the global one if None.
        uniforms: numbers in [0, 1) to draw by instead, ``[...]``: one per label, which is the class at that place of
            the distribution function.

    Returns:
        int64 ``[...]``.

    Raises:
        ValueError: fewer than 2 classes, or ``uniforms`` of another shape.
    """
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits must hold 2 or more classes, got shape {tuple(logits.shape)}")
    if uniforms is None:
        device = logits.device if generator is None else generator.device
        uniforms = torch.rand(logits.shape[:-1], generator=generator, device=device)
    if uniforms.shape != logits.shape[:-1]:
        expected = tuple(logits.shape[:-1])
        raise ValueError(f"uniforms must have the shape of the labels, {expected}, got {tuple(uniforms.shape)}")
    summed = logits.detach().float().softmax(-1).cumsum(-1)  # [..., C]
    # in (0, last], so that the class found has a probability above 0 whatever the rounding
    place = (1.0 - uniforms.to(summed).unsqueeze(-1)) * summed[..., -1:]  # [..., 1]
    return torch.searchsorted(summed, place).squeeze(-1)


def hutchinson(loss: Tensor, params: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    """Estimates the diagonal of the Hessian by ``u * (H u)``, u standard normal (algorithm 1).

    Args:
        loss: scalar, a function of the parameters that can be differentiated twice; its graph is freed.
        params: P parameters.
        generator: source of u, on any device; the global one if None.

    Returns:
        P tensors with the shapes of the parameters; entries may be negative.
    """
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    noise = []
    for p in params:
        device = p.device if generator is None else generator.device
        noise.append(torch.randn(p.shape, generator=generator, device=device, dtype=p.dtype).to(p.device))
    curved = [(grad, u) for grad, u in zip(grads, noise, strict=True) if grad.requires_grad]
    if not curved:  # the loss is linear
        return [torch.zeros_like(p) for p in params]
    outputs, vectors = zip(*curved, strict=True)
    products = torch.autograd.grad(outputs, params, vectors, materialize_grads=True)
    return [u * product for u, product in zip(noise, products, strict=True)]
