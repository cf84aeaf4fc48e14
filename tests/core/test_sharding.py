"""Which parameters are sharded together, and when they cannot be."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, init_device_mesh

from leyden.core.sharding import shard_parameters
from leyden.methods import Classification
from leyden.models import GPT, MLP


def method(*, tied=False):
    torch.manual_seed(0)
    return Classification(GPT(11, 4, dim=6, depth=2, num_heads=2, tie_weights=tied))


def sharded_alone(tied, blocks):
    """Names of the modules that are gathered for themselves, and this process's rows of an embedding."""
    module = method(tied=tied)
    shard_parameters(module, init_device_mesh("cpu", (2,)), blocks=blocks)
    shard_parameters(module, init_device_mesh("cpu", (2,)), blocks=blocks)  # does nothing: a test after a fit
    assert all(isinstance(p, DTensor) for p in module.parameters())
    names = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    return names, module.network.token_embedding.weight.to_local()


def refusals():
    mesh = init_device_mesh("cpu", (2,))
    errors = []
    by_hand = method()
    by_hand.automatic_optimization = False
    other = method()
    with torch.no_grad():
        other.network.head.weight[0, 0] += torch.distributed.get_rank()
    for module in (by_hand, other):
        with pytest.raises(MisconfigurationException) as caught:
            shard_parameters(module, mesh)
        errors.append(str(caught.value))
        assert not any(isinstance(p, DTensor) for p in module.parameters())
    return errors


def tied_layer():
    torch.manual_seed(0)
    network = MLP(4, 3, hidden=(5, 5))
    module = Classification(network)
    network.other = nn.Linear(4, 5)
    network.other.weight = next(part for part in network.modules() if isinstance(part, nn.Linear)).weight
    shard_parameters(module, init_device_mesh("cpu", (2,)))
    return [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_are_gathered_one_by_one(run_processes, tied):
    whole = method(tied=tied).network.token_embedding.weight
    for rank, (names, rows) in enumerate(run_processes(sharded_alone, 2, tied, True)):
        assert names == ["", "network.blocks.0", "network.blocks.1"]
        assert torch.equal(rows, whole[:6] if rank == 0 else whole[6:])


def test_all_at_once(run_processes):
    for names, _ in run_processes(sharded_alone, 2, False, False):
        assert names == [""]


def test_a_layer_with_a_weight_of_another_is_no_block(run_processes):
    network = MLP(4, 3, hidden=(5, 5))
    first, *others = (name for name, part in network.named_modules() if isinstance(part, nn.Linear))
    for names in run_processes(tied_layer, 2):
        assert f"network.{first}" not in names
        assert any(f"network.{name}" in names for name in others)


def test_what_cannot_be_sharded_is_refused_on_all_processes(run_processes):
    for by_hand, different in run_processes(refusals, 2):
        assert by_hand.startswith("Classification makes its optimizer steps itself")
        assert different.startswith("the processes begin with different weights: set seed_everything")
