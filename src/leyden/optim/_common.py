"""What the optimizers share: checks, the form that a step takes, and norms of whole parameters."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    "advance_adam_state",
    "check_at_least_zero",
    "check_betas",
    "foreach_adamw_",
    "fused_adamw_",
    "is_loop_faster",
    "is_sharded",
    "largest_magnitude",
    "norm",
    "norms",
    "pieces",
    "restore_precision",
    "shards",
    "with_gradient",
]

_PIECE = 2**16  # elements per thread that one pass reads and the next still finds in the cache


def check_at_least_zero(**settings: float) -> None:
    """Raises `ValueError` for a setting below 0."""
    for name, value in settings.items():
        if not value >= 0.0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_betas(betas: Sequence[float], name: str = "betas", number: int = 2) -> None:
    """Raises `ValueError` unless there are ``number`` decay rates in [0, 1)."""
    if len(betas) != number or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"{name} must be {number} numbers in [0, 1), got {betas}")


def with_gradient(optimizer: Optimizer, group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that have a gradient.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter complex.
    """
    params = [p for p in group["params"] if p.grad is not None]
    for p in params:
        if p.grad.layout != torch.strided:
            raise RuntimeError(f"{type(optimizer).__name__} does not support sparse gradients")
        if p.is_complex():
            raise RuntimeError(f"{type(optimizer).__name__} does not support complex parameters")
    return params


def advance_adam_state(
    optimizer: Optimizer, group: dict[str, Any], extra_state: Callable[[Tensor], dict[str, Tensor]] | None = None
) -> dict[int, list[Tensor]]:
    """Counts a step of every parameter of a group that has a gradient; the first one makes its averages.

    Args:
        optimizer: its ``state[p]`` gets ``step``, ``exp_avg`` and ``exp_avg_sq``.
        group: one of its groups.
        extra_state: what else the state of a parameter begins with.

    Returns:
        The parameters by the number of their step: those of one number can be updated together.

    Raises:
        RuntimeError: a gradient is sparse, or a parameter complex.
    """
    by_step: dict[int, list[Tensor]] = {}
    for p in with_gradient(optimizer, group):
        state = optimizer.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            if extra_state is not None:
                state.update(extra_state(p))
        state["step"] += 1
        by_step.setdefault(state["step"], []).append(p)
    return by_step


def restore_precision(optimizer: Optimizer, state_dict: dict[str, Any], name: str) -> None:
    """After ``load_state_dict``, which casts it to a parameter's dtype, restores a state as it was saved."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for key, p in zip(keys, params, strict=True):
        if key in state_dict["state"]:
            optimizer.state[p][name] = state_dict["state"][key][name].to(p.device, copy=True)


def is_loop_faster(*lists: Sequence[Tensor]) -> bool:
    """Whether to work tensor by tensor, in the cache, rather than by ``_foreach_`` over all of them.

    On a CPU it is; but `fused_adamw_` reads memory in order, so that a tensor and its state must lie alike in it.

    Args:
        lists: parameters, their gradients, and each kind of state.
    """
    return all(
        p.device.type == "cpu" and len({t.stride() for t in (p, *rest)}) == 1 for p, *rest in zip(*lists, strict=True)
    )


def shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts that this process holds; they share memory with the tensors."""
    return [cast(Any, t).to_local() if is_sharded(t) else t for t in tensors]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; none can be while their module, which is slow to import, was not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def norm(tensor: Tensor) -> Tensor:
    """Euclidean norm of a whole tensor, also where processes share it; float32 at least, ``[]``."""
    value = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return value.full_tensor() if is_sharded(value) else value


def norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """`norm` of each of T tensors, ``[T]``."""
    if any(map(is_sharded, tensors)):
        return torch.stack([norm(t) for t in tensors])
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Largest absolute value in a whole tensor, also where processes share it; 0 if it is empty, ``[]``."""
    (shard,) = shards([tensor])
    if shard.numel() == 0:
        value = shard.new_zeros(())
    else:
        low, high = torch.aminmax(shard)
        value = torch.maximum(high, -low)
    if is_sharded(tensor):
        from torch.distributed.tensor import DTensor, Partial

        mesh = cast(Any, tensor).device_mesh
        return DTensor.from_local(value, mesh, [Partial("max")] * mesh.ndim, run_check=False).full_tensor()
    return value


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cuts tensors of one shape that lie alike in memory into flat views that fit into the cache.

    Small ones, and those with gaps or a transposed layout, come as they are.
    """
    size = _PIECE * torch.get_num_threads()
    if tensors[0].numel() <= 4 * size or not all(t.is_contiguous() for t in tensors):
        yield tensors
    else:
        yield from zip(*(t.view(-1).split(size) for t in tensors), strict=True)


def fused_adamw_(
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """One step of AdamW by PyTorch's kernel for the CPU, which passes through memory once.

    Args:
        p: parameter, changed in place, like its averages; all lie alike in memory.
        grad: gradient.
        exp_avg: average of the gradients.
        exp_avg_sq: average of their squares.
        step: number of this step, from 1, for the corrections of bias, float ``[]``; infinity leaves them out.
        lr: learning rate.
        beta1: decay of the first average.
        beta2: decay of the second.
        eps: is added to the root.
        weight_decay: decoupled.
    """
    torch._fused_adamw_(
        [p],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def foreach_adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """One step of AdamW over lists of tensors; the arguments are those of `fused_adamw_`."""
    torch._foreach_mul_(params, 1.0 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1.0 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - beta2)
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, math.sqrt(1.0 - beta2**step))
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(params, exp_avgs, roots, -lr / (1.0 - beta1**step))
