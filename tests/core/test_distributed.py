"""One process by identities, two by hand."""

import pytest
import torch

from leyden.core import (
    SampleMemory,
    TermMeter,
    accumulate_gradients,
    all_gather_rows,
    all_gather_rows_with_grad,
    all_reduce_mean,
    all_reduce_sum,
    copy_from_first_,
    gradients_per_term,
    local_shards,
    rank,
    shard_like,
    whole,
    world_size,
)


@pytest.mark.parametrize("reduce", [all_gather_rows, all_reduce_mean, all_reduce_sum])
def test_alone_a_tensor_is_its_own_sum_without_gradients(reduce):
    tensor = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert torch.equal(reduce(tensor), tensor)
    assert not reduce(tensor).requires_grad
    assert (rank(), world_size()) == (0, 1)


def on_two() -> dict:
    me = rank()
    value = torch.tensor([1.0 + me, 10.0], requires_grad=True)
    found = {
        "who": (me, world_size()),
        "sum": all_reduce_sum(value).tolist(),
        "mean": all_reduce_mean(value).tolist(),
        "rows": all_gather_rows(torch.tensor([[me, 5], [me, 6]]).T).tolist(),  # not contiguous
        "input": value.tolist(),
    }
    memory = SampleMemory(4)
    memory.write(torch.tensor([2 * me, 2 * me + 1]), torch.tensor([10.0 * me, 10.0 * me + 1]))
    found["memory"] = (memory.values.tolist(), memory.written.tolist())

    weight = torch.nn.Parameter(torch.tensor([2.0]))
    [gradient] = gradients_per_term({"task": (me + 1.0) * weight.sum()}, [weight])["task"]
    accumulate_gradients([weight], [gradient])
    found["gradient"] = weight.grad.tolist()

    values = torch.tensor([[1.0], [2.0]]) * (1 + 2 * me)  # 1, 2 and 3, 6
    rows = all_gather_rows_with_grad(values * weight)
    [gradient] = torch.autograd.grad(rows.square().sum(), [weight])
    found["rows with gradient"] = (rows.flatten().tolist(), gradient.item())

    meter = TermMeter()
    meter.update({"a": torch.tensor(1.0 + me), "b": torch.tensor(4.0)}, num_samples=1 + 2 * me, step=0)
    found["means"] = meter.means()
    resumed = TermMeter()
    resumed.load_state_dict(meter.state_dict())
    found["resumed"] = resumed.means()
    return found


def test_two_processes(run_processes):
    for number, found in enumerate(run_processes(on_two, 2)):
        assert found["who"] == (number, 2)
        assert found["sum"] == [3.0, 20.0]
        assert found["mean"] == [1.5, 10.0]
        assert found["rows"] == [[0, 0], [5, 6], [1, 1], [5, 6]]
        assert found["input"] == [1.0 + number, 10.0]
        assert found["memory"] == ([0.0, 1.0, 10.0, 11.0], [True] * 4)
        assert found["gradient"] == [1.5]
        # of the sum over all, (1 + 4 + 9 + 36) w^2 at w = 2, it is the mean over processes of twice each one's part
        assert found["rows with gradient"] == ([2.0, 4.0, 6.0, 12.0], 2 * 2 * 2 * [5, 45][number])
        # (1 * 1 + 3 * 2) / 4 and 4
        assert found["means"] == found["resumed"] == {"loss": 5.75, "a": 1.75, "b": 4.0}


def shared_between_two() -> dict:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    rows = torch.arange(6.0).view(3, 2)
    shards = distribute_tensor(rows, init_device_mesh("cpu", (2,)), [Shard(0)])
    again = shard_like(10.0 * rows, shards)
    here, empty = torch.tensor([1.0 + rank()]), torch.zeros(0)
    copy_from_first_([here, empty])
    return {
        "local": local_shards([shards, here])[0].tolist(),
        "whole": whole(shards).tolist(),
        "again": (again.placements == shards.placements, again.to_local().tolist()),
        "twice": shard_like(again, shards) is again,
        "here": here.tolist(),
    }


def test_what_two_processes_share(run_processes):
    rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    for number, found in enumerate(run_processes(shared_between_two, 2)):
        assert found["local"] == [rows[:2], rows[2:]][number]
        assert found["whole"] == rows
        assert found["again"] == (True, [[[0.0, 10.0], [20.0, 30.0]], [[40.0, 50.0]]][number])
        assert found["twice"]
        assert found["here"] == [1.0]


def test_alone_a_tensor_is_whole():
    tensor = torch.ones(2)
    assert whole(tensor) is shard_like(tensor, torch.zeros(2)) is local_shards([tensor])[0] is tensor
    copy_from_first_([tensor])
    assert tensor.tolist() == [1.0, 1.0]
