"""Sums and rows over all processes, and tensors that they share; without process group functions return their input."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_rows",
    "all_gather_rows_with_grad",
    "all_reduce_mean",
    "all_reduce_sum",
    "copy_from_first_",
    "is_sharded",
    "local_shards",
    "rank",
    "shard_like",
    "whole",
    "world_size",
]


def world_size() -> int:
    """Number of processes, 1 without process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 without process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a detached tensor over all processes; the input is left as it is."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean of a detached tensor over all processes; the input is left as it is."""
    return all_reduce_sum(tensor) / world_size()


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; detached.

    Args:
        tensor: ``[N, ...]``; N must be the same everywhere.

    Returns:
        ``[N * world_size, ...]``.
    """
    if world_size() == 1:
        return tensor.detach()
    gathered = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    gather(gathered, tensor.detach().contiguous())
    return gathered


def all_gather_rows_with_grad(tensor: Tensor) -> Tensor:
    """Rows of all processes, with a gradient to those of this one: for a loss of all rows, made by every process.

    The gradient is that of the loss times the number of processes, so that its mean over them, as DDP takes it, is that
    of one process with all rows.

    Args:
        tensor: ``[N, ...]``; N must be the same everywhere.

    Returns:
        ``[N * world_size, ...]``.
    """
    if world_size() == 1:
        return tensor
    start, rows = rank() * len(tensor), all_gather_rows(tensor)
    own = tensor.detach() + world_size() * (tensor - tensor.detach())
    return torch.cat([rows[:start], own, rows[start + len(tensor) :]])


def copy_from_first_(tensors: list[Tensor]) -> None:
    """Gives all processes what the first has in these tensors, in place."""
    tensors = [tensor.detach() for tensor in tensors if tensor.numel()]
    if tensors and world_size() > 1:
        assert dist.group.WORLD is not None
        dist._broadcast_coalesced(dist.group.WORLD, tensors, 2**28, 0)  # as DDP does with buffers


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether there is a `DTensor` among tensors."""
    return any(hasattr(tensor, "full_tensor") for tensor in tensors)


def whole(tensor: Tensor) -> Tensor:
    """A sharded parameter, or another `DTensor`, put together; to be called by all processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """What `whole` returned, or something of its shape that all processes have, sharded as ``like`` is."""
    if not hasattr(like, "full_tensor") or hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shards: Any = like
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, shards.device_mesh, shards.placements, src_data_rank=None)  # none sends


def local_shards(tensors: list[Tensor]) -> list[Tensor]:
    """The parts of tensors that this process has, for work element by element: as fast as on plain tensors."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
