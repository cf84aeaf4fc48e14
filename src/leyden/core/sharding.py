"""Parameters, gradients and optimizer states that processes share among themselves (fully sharded data parallel)."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["shard_parameters"]

STEPS = ("training_step", "validation_step", "test_step", "predict_step", "with_whole_parameters")


def shard_parameters(module: "Method", mesh: DeviceMesh, *, blocks: bool = True) -> None:
    """Leaves each process its rows of every parameter; outside of the module's steps they are `DTensor`.

    Within a step they are plain and whole: those of a block while it runs, all others from its begin to its end.

    Args:
        module: has the same weights on all processes; left as it is if it was sharded before.
        mesh: of one dimension.
        blocks: whether the members of lists and sequences of layers are gathered one by one; else all at once.

    Raises:
        MisconfigurationException: the module makes its optimizer steps itself, or the weights are not the same.
    """
    if isinstance(module, FSDPModule):
        return
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{type(module).__name__} makes its optimizer steps itself, within a step, where its parameters cannot be "
            "sharded: use the strategy ddp"
        )
    _check_same(module)
    name = type(module).__name__
    if blocks:
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
    # also after an evaluation: what was gathered would not follow the weights that a callback puts in their place
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    type(module).__name__ = name  # torch has made a class "FSDP...", which nobody knows from messages
    for step in STEPS:
        register_fsdp_forward_method(module, step)


@torch.no_grad()
def _check_same(module: nn.Module) -> None:
    sums: list[list[float]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(sums, [p.double().sum().item() for p in module.parameters()])
    if any(other != sums[0] for other in sums):
        raise MisconfigurationException(
            "the processes begin with different weights: set seed_everything, or load the same weights on all"
        )


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists and sequences that have parameters and share none with other modules."""
    uses = Counter(id(p) for inner in module.modules() for p in inner._parameters.values() if p is not None)
    todo = [module]
    while todo:
        for child in todo.pop().children():
            if not isinstance(child, (nn.ModuleList, nn.Sequential)):
                todo.append(child)
                continue
            for block in child:
                parameters = list(block.parameters())
                if parameters and all(uses[id(p)] == 1 for p in parameters):
                    yield block
