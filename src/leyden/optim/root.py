"""Root (W. He et al., "ROOT: Robust Orthogonalized Optimizer for Neural Network Training", 2025, arXiv 2511.20626).

Original code: huawei-noah/noah-research, ``ROOT/examples/example_train.py``. It has coefficients for four shapes of
matrices; how to fit those of others is not published. Scale and AdamW branch are those of MoonshotAI/Moonlight.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

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
    is_sharded,
    shards,
    with_gradient,
)

__all__ = ["Root", "adanewton_coefficients", "newton_schulz", "soft_threshold_split"]

_MUON = (3.4445, -4.7750, 2.0315)
_BY_SHAPE = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}


class Root(Optimizer):
    """Muon on clipped momentum: the step of a matrix is its momentum, without outliers, made nearly orthogonal.

    ``b <- momentum * b + g``; ``d = g + momentum * b`` with Nesterov's momentum, else b; the entries of d are clamped
    to the ``quantile`` of their magnitudes, and X is what `newton_schulz` makes of them; ``p <- p * (1 - lr *
    weight_decay) - lr * 0.2 * sqrt(max(rows, columns)) * X``: a step about as large as AdamW's. Tensors of more
    dimensions are matrices whose rows are the entries of their first. Scalars and vectors take AdamW.

    Args:
        params: parameters or groups of them. A group may say ``orthogonalize=False``, then its matrices take AdamW too:
            usual for embeddings and the last layer.
        lr: learning rate, of both branches.
        weight_decay: decoupled, in both branches.
        momentum: share of the buffer b that a step keeps.
        nesterov: whether the momentum is Nesterov's.
        ns_steps: Newton-Schulz iterations.
        quantile: share of the entries of a matrix that are not clamped; 1 clamps none, which is Muon.
        coefficients: a, b and c of the iterations; None for `adanewton_coefficients` of each matrix.
        adamw_betas: decay rates of AdamW's averages.
        adamw_eps: is added to AdamW's root before its bias is corrected, as in the original code.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        nesterov: bool = True,
        ns_steps: int = 5,
        quantile: float = 0.9,
        coefficients: tuple[float, float, float] | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
    ) -> None:
        check_at_least_zero(lr=lr, weight_decay=weight_decay, adamw_eps=adamw_eps)
        check_betas(adamw_betas, "adamw_betas")
        _check_quantile(quantile)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if ns_steps < 1:
            raise ValueError(f"ns_steps must be at least 1, got {ns_steps}")
        if coefficients is not None and len(coefficients) != 3:
            raise ValueError(f"coefficients must be three numbers, or None for those of each shape, got {coefficients}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "quantile": quantile,
            "coefficients": coefficients,
            "adamw_betas": adamw_betas,
            "adamw_eps": adamw_eps,
            "orthogonalize": True,
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
            others = []
            for p in with_gradient(self, group):
                if p.ndim < 2 or not group["orthogonalize"]:
                    others.append(p)
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                _update(p, cast(Tensor, p.grad), state["momentum_buffer"], group)
            for step, params in advance_adam_state(self, group | {"params": others}).items():
                _update_by_adamw(
                    params,
                    [p.grad for p in params],  # type: ignore[misc]
                    [self.state[p]["exp_avg"] for p in params],
                    [self.state[p]["exp_avg_sq"] for p in params],
                    step,
                    group,
                )
        return loss


def _update(p: Tensor, grad: Tensor, buffer: Tensor, group: dict[str, Any]) -> None:
    lr, momentum, quantile = group["lr"], group["momentum"], group["quantile"]
    buffer.mul_(momentum).add_(grad)
    direction = grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
    if is_sharded(direction):  # an iteration needs the whole matrix; every process makes it
        direction = cast(Any, direction).full_tensor()
    matrix = direction.flatten(1)
    if quantile < 1.0:
        limit = _magnitude(matrix, quantile).to(matrix.dtype)
        matrix = matrix.clamp(-limit, limit)
    coefficients = group["coefficients"] or adanewton_coefficients(matrix.shape)
    step = newton_schulz(matrix, group["ns_steps"], coefficients).view(direction.shape)
    if is_sharded(p):
        from torch.distributed.tensor import distribute_tensor

        shared = cast(Any, p)
        step = distribute_tensor(step, shared.device_mesh, shared.placements, src_data_rank=None)
    p.mul_(1.0 - lr * group["weight_decay"]).add_(step, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


def _update_by_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: int,
    group: dict[str, Any],
) -> None:
    beta1, beta2 = group["adamw_betas"]
    settings = {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["adamw_eps"] / math.sqrt(1.0 - beta2**step),  # beside the corrected root
        "weight_decay": group["weight_decay"],
    }
    if is_loop_faster(params, grads, exp_avgs, exp_avg_sqs):
        counter = torch.tensor(float(step))
        for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            fused_adamw_(*shards(tensors), step=counter, **settings)
    else:
        foreach_adamw_(params, grads, exp_avgs, exp_avg_sqs, step=step, **settings)


def soft_threshold_split(g: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Splits a tensor into its entries clamped to a threshold, and what lies above it.

    Args:
        g: any shape, not empty.
        quantile: the threshold e is this quantile of ``|g|``, linearly interpolated, plus 1e-9.

    Returns:
        ``base``, with entries in [-e, e], and ``outlier = sign(g) * max(|g| - e, 0)``, which is ``g - base``.

    Raises:
        ValueError: ``quantile`` is outside of [0, 1], or ``g`` is empty.
    """
    _check_quantile(quantile)
    if g.numel() == 0:
        raise ValueError(f"g must not be empty, got shape {tuple(g.shape)}")
    limit = _magnitude(g, quantile).to(g.dtype)
    base = g.clamp(-limit, limit)
    return base, g - base


def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = _MUON) -> Tensor:
    """Moves all singular values of a matrix near 1: to about 0.7 to 1.2, with Muon's coefficients.

    ``X = g / ||g||``, then ``X <- a X + (b A + c A A) X`` with ``A = X X^T``. On a CPU half precision is iterated in
    float32.

    Args:
        g: ``[M, N]``.
        steps: iterations.
        coefficients: a, b and c.

    Returns:
        ``[M, N]``, of g's dtype.

    Raises:
        ValueError: ``g`` is no matrix.
    """
    if g.ndim != 2:
        raise ValueError(f"g must be a matrix, [M, N], got shape {tuple(g.shape)}")
    a, b, c = coefficients
    x = g.to(torch.promote_types(g.dtype, torch.float32)) if g.device.type == "cpu" else g
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T  # the smaller of the two Gram matrices
    x = x / (torch.linalg.vector_norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(g.dtype)


def adanewton_coefficients(shape: Sequence[int]) -> tuple[float, float, float]:
    """Coefficients of `newton_schulz` that the authors published for a shape of matrices; Muon's for any other.

    Args:
        shape: rows and columns, in any order.
    """
    rows, columns = shape
    return _BY_SHAPE.get((min(rows, columns), max(rows, columns)), _MUON)


def _check_quantile(quantile: float) -> None:
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")


def _magnitude(g: Tensor, quantile: float) -> Tensor:
    # `torch.quantile` sorts, and refuses more than 16 million entries
    magnitudes = g.abs().flatten().to(torch.promote_types(g.dtype, torch.float32))
    place = quantile * (magnitudes.numel() - 1)
    lower, upper = (magnitudes.kthvalue(1 + rank).values for rank in (math.floor(place), math.ceil(place)))
    return lower.lerp(upper, place - math.floor(place)) + 1e-9
