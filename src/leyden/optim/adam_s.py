"""AdamS (CAST: W. Huang et al., "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large
Language Models", 2025, arXiv 2509.25996, section 3): Adam that pulls weights outside of an N:M mask towards zero, ever
stronger.

No code of the authors is public. The paper leaves open the second moment of tensors that are not made sparse: here it
is that of the first moment, as for the others.
"""

from collections.abc import Callable, Iterable
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
from leyden.weights.prune import nm_mask

__all__ = ["AdamS"]


class AdamS(Optimizer):
    r"""Adam whose first moment, where the mask is 0, turns step by step into the gradient of an L1 penalty.

    With ``alpha = t / total_steps``, t from 0, and the mask of the n largest of every m weights along the inputs, the
    moment ``m`` becomes ``(1 - alpha) m + alpha l1_decay sign(p)`` where the mask is 0; the second moment is the
    average of the square of what results. The stored first moment is of gradients alone.

    Args:
        params: parameters or groups of them. A group may say ``sparse=False``: right for embeddings and the last layer.
            Tensors with fewer than 2 dimensions, or whose second one is no multiple of m, are never sparse.
        lr: learning rate.
        betas: decay rates of the averages of gradients and of squares.
        eps: is added to the root.
        weight_decay: decoupled.
        total_steps: steps until ``alpha`` is 1, where it stays; `leyden.callbacks.CAST` fills in the length of the fit
            if None.
        l1_decay: strength of the pull. Adam divides by the size of what it steps along: late in training, when the
            second moment has forgotten the gradients, a weight moves about ``lr`` per step, whatever the strength.
        n: weights of a group that are kept.
        m: size of a group.
        mask_interval: steps between two masks.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        total_steps: int | None = None,
        l1_decay: float = 4e-7,
        n: int = 2,
        m: int = 4,
        mask_interval: int = 10,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay, l1_decay=l1_decay)
        check_betas(betas)
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 1 <= n <= m:
            raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
        if mask_interval < 1:
            raise ValueError(f"mask_interval must be at least 1, got {mask_interval}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "l1_decay": l1_decay,
            "n": n,
            "m": m,
            "mask_interval": mask_interval,
            "sparse": True,
        }
        super().__init__(params, defaults)
        self._dense: set[int] = set()

    def leave_dense(self, params: Iterable[Tensor]) -> None:
        """Takes parameters out of what becomes sparse; not saved: to be called for every optimizer that is made."""
        self._dense.update(map(id, params))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; masks are bool again, which torch has cast as averages."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "mask" in state:
                state["mask"] = state["mask"].bool()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure, if there is one, returned.

        Raises:
            RuntimeError: ``total_steps`` is None, a gradient is sparse, a parameter complex, or one that is to become
                sparse is sharded along its inputs.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["total_steps"] is None:
                raise RuntimeError(
                    "AdamS needs total_steps: give the number of optimizer steps, or add leyden.callbacks.CAST"
                )
            for step, params in advance_adam_state(self, group).items():
                for p in params:
                    if self._is_sparse(p, group) and (step - 1) % group["mask_interval"] == 0:
                        self.state[p]["mask"] = _mask(p, group["n"], group["m"])
                states = [self.state[p] for p in params]
                averages = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
                lists: list[list[Any]] = [
                    shards(kind) for kind in (params, [cast(Tensor, p.grad) for p in params], *averages)
                ]
                masks = [shards([state["mask"]])[0] if "mask" in state else None for state in states]
                if is_loop_faster(*lists):
                    for number, mask in enumerate(masks):
                        _update([[kind[number]] for kind in lists], [mask], step, group)
                else:
                    _update(lists, masks, step, group)
        return loss

    def _is_sparse(self, p: Tensor, group: dict[str, Any]) -> bool:
        return group["sparse"] and id(p) not in self._dense and p.ndim >= 2 and p.shape[1] % group["m"] == 0


def _mask(p: Any, n: int, m: int) -> Tensor:
    if not is_sharded(p):
        return nm_mask(p, n, m)
    from torch.distributed.tensor import DTensor

    if any(placement.is_shard() and placement.dim != 0 for placement in p.placements):
        raise RuntimeError("AdamS compares weights along the inputs: shard parameters along dimension 0 only")
    local = nm_mask(p.to_local(), n, m)
    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _update(lists: list[list[Tensor]], masks: list[Tensor | None], step: int, group: dict[str, Any]) -> None:
    params, grads, exp_avgs, exp_avg_sqs = lists
    lr, (beta1, beta2) = group["lr"], group["betas"]
    alpha = min((step - 1) / group["total_steps"], 1.0)
    torch._foreach_lerp_(exp_avgs, grads, 1.0 - beta1)
    moments = [
        exp_avg
        if mask is None
        else torch.where(mask, exp_avg, (1.0 - alpha) * exp_avg + (alpha * group["l1_decay"]) * p.sign())
        for p, exp_avg, mask in zip(params, exp_avgs, masks, strict=True)
    ]
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, moments, moments, 1.0 - beta2)
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, (1.0 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, group["eps"])
    if group["weight_decay"] > 0.0:
        torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
    torch._foreach_addcdiv_(params, moments, roots, -lr / (1.0 - beta1**step))
