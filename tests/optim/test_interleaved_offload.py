import copy
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import InterleavedOffload, interleave_period, subgroups

SHAPES = [(7, 5), (3,), (), (4, 4), (2, 3, 2), (11,)]
INNER = {
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, centered=True),
}


def parameters(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


def train(optimizer, params, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(1 + step)
        for number, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator).to(p.device)
            p.grad = None if number == 1 and step % 3 == 0 else grad
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize(
    ("times", "expected"),
    [  # by hand
        ((1.0, 0.5, 2.5), 4),
        ((1.0, 3.0, 2.5), 4),
        ((1.0, 0.1, 1.0), 2),
        ((10.0, 0.1, 0.2), 2),
        ((0.5, 0.1, 4.0), 9),
    ],
)
def test_period(times, expected):
    cpu, gpu, transfer = times
    assert interleave_period(cpu_update=cpu, gpu_update=gpu, transfer=transfer) == expected


def test_a_faster_link_never_lengthens_the_period():
    periods = [interleave_period(cpu_update=0.3, gpu_update=0.05, transfer=t / 10) for t in range(30, 0, -1)]
    assert periods == sorted(periods, reverse=True)
    assert periods[-1] == 2


@pytest.mark.parametrize("size", [1, 5, 16, 35, 10**9])
def test_every_parameter_is_in_one_subgroup(size):
    params = parameters()
    found = subgroups(params, size)
    assert [id(p) for part in found for p in part] == [id(p) for p in params]
    assert all(len(part) == 1 or sum(p.numel() for p in part) <= size for part in found)
    assert len(found) == {1: 6, 5: 5, 16: 5, 35: 3, 10**9: 1}[size]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("device", [None, "cpu"])  # plain, and interleaved between the host and itself
@pytest.mark.parametrize(("period", "size"), [("auto", 16), (1, 5), (2, 1), (3, 16), (9, 1)])
def test_same_bits_as_the_inner_optimizer(inner, device, period, size):
    ours, theirs = parameters(), parameters()
    wrapped = InterleavedOffload(ours, INNER[inner], subgroup_size=size, period=period, device=device)
    plain = INNER[inner](theirs)
    assert all(map(torch.equal, train(wrapped, ours, range(8)), train(plain, theirs, range(8))))
    states = wrapped.state_dict(), plain.state_dict()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, state in states[0]["state"].items():
        assert state.keys() == states[1]["state"][number].keys()
        assert all(torch.equal(state[name], states[1]["state"][number][name]) for name in state)


def test_measures_and_then_keeps_the_period():
    params = parameters()
    optimizer = InterleavedOffload(params, INNER["adamw"], subgroup_size=16, device="cpu")
    train(optimizer, params, range(6))
    assert isinstance(optimizer.period, int)
    assert optimizer.period >= 2
    assert "period" not in str(optimizer.state_dict())


@pytest.mark.parametrize("device", [None, "cpu"])
def test_goes_on_and_takes_states_of_the_plain_optimizer(device):
    whole = parameters()
    train(InterleavedOffload(whole, INNER["adamw"], subgroup_size=16, period=2, device=device), whole, range(8))
    params = parameters()
    first = INNER["adamw"](params)
    train(first, params, range(3))
    others = [Parameter(p.detach().clone()) for p in params]
    second = InterleavedOffload(others, INNER["adamw"], subgroup_size=5, period=3, device=device)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, others, range(3, 8))
    assert all(map(torch.equal, whole, others))


def test_groups_schedules_and_new_groups_reach_the_inner_optimizer():
    params = parameters()
    wrapped = InterleavedOffload(
        [{"params": params[:3]}, {"params": params[3:5], "lr": 0.5}], INNER["adamw"], subgroup_size=5, device="cpu"
    )
    wrapped.add_param_group({"params": params[5:], "lr": 0.0})
    scheduler = torch.optim.lr_scheduler.LambdaLR(wrapped, lambda step: 1.0 / (1 + step))
    before = params[5].detach().clone()
    train(wrapped, params, range(2))
    scheduler.step()
    assert [group["lr"] for group in wrapped.inner.param_groups] == [0.01, 0.25, 0.0]
    assert torch.equal(params[5], before)
    assert all(group["params"] for group in wrapped.param_groups)


def test_closure():
    [p] = [Parameter(torch.ones(3))]
    optimizer = InterleavedOffload([p], partial(torch.optim.SGD, lr=0.5))

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert torch.equal(p.detach(), torch.zeros(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the transfers, streams and pinned memory")
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("period", [1, 2, 3, "auto"])
def test_states_stay_on_the_host_beside_cuda(inner, period):
    ours, theirs = parameters("cuda"), parameters()
    wrapped = InterleavedOffload(ours, INNER[inner], subgroup_size=16, period=period)
    train(wrapped, ours, range(12))
    expected = train(INNER[inner](theirs), theirs, range(12))
    for p, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(p.detach().cpu(), other, rtol=1e-5, atol=1e-6)
        assert p.device.type == "cuda"
        assert all(t.device.type == "cpu" for t in wrapped.state[p].values() if isinstance(t, torch.Tensor) and t.ndim)


def test_bad_arguments():
    for match, call in (
        ("cpu_update must be a time above 0, got 0", lambda: interleave_period(cpu_update=0, gpu_update=1, transfer=1)),
        ("max_elements must be at least 1, got 0", lambda: subgroups([], 0)),
        ("period must be 'auto' or at least 1, got 0", lambda: InterleavedOffload(parameters(), period=0)),
        ("period must be 'auto' or at least 1, got 'often'", lambda: InterleavedOffload(parameters(), period="often")),
        ("subgroup_size must be at least 1, got 0", lambda: InterleavedOffload(parameters(), subgroup_size=0)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
