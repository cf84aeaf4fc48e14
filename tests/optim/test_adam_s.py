from functools import partial

import pytest
import torch
from torch import nn

from leyden.optim import AdamS
from leyden.weights import nm_mask

SHAPES = [(6, 8), (5,), (4, 4, 3, 2), (3, 6)]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters():
    return [nn.Parameter(randn(*shape, seed=number)) for number, shape in enumerate(SHAPES)]


def train(optimizer, params, steps, start=0):
    for step in range(start, steps):
        for number, p in enumerate(params):
            p.grad = randn(*p.shape, seed=100 + 10 * step + number)
        optimizer.step()


def reference(p, steps, *, sparse, lr, betas, eps, total_steps, l1_decay, n, m, mask_interval, weight_decay=0.0):
    """The equations in float64, entry by entry in words of the paper."""
    p, number = p.detach().clone(), SHAPES.index(tuple(p.shape))
    mu, v = torch.zeros_like(p), torch.zeros_like(p)
    for t in range(steps):
        g = randn(*p.shape, seed=100 + 10 * t + number)
        if sparse and t % mask_interval == 0:
            keep = nm_mask(p, n, m)
        alpha = min(t / total_steps, 1.0)
        mu = betas[0] * mu + (1 - betas[0]) * g
        pulled = (1 - alpha) * mu + alpha * l1_decay * p.sign()
        moment = torch.where(keep, mu, pulled) if sparse else mu
        v = betas[1] * v + (1 - betas[1]) * moment**2
        p = p * (1 - lr * weight_decay)
        p = p - lr * (moment / (1 - betas[0] ** (t + 1))) / ((v / (1 - betas[1] ** (t + 1))).sqrt() + eps)
    return p


KNOBS = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8, "total_steps": 12, "l1_decay": 0.3, "n": 1, "m": 4}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_same_as_the_equations(form, weight_decay):
    params = parameters()
    knobs = {**KNOBS, "mask_interval": 3, "weight_decay": weight_decay}
    train(AdamS(params, **knobs), params, 15)
    for p, start, sparse in zip(params, parameters(), (True, False, True, False), strict=True):
        torch.testing.assert_close(p.detach(), reference(start, 15, sparse=sparse, **knobs), rtol=1e-11, atol=1e-12)


def test_without_decay_it_is_adam_on_the_square_of_the_momentum(form):
    params = parameters()
    knobs = {**KNOBS, "total_steps": 10**12, "l1_decay": 0.0}
    train(AdamS(params, **knobs, mask_interval=1), params, 6)
    for p, start in zip(params, parameters(), strict=True):
        expected = reference(start, 6, sparse=False, **knobs, mask_interval=1)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-9)


def test_weights_outside_of_the_mask_vanish():
    p = nn.Parameter(randn(8, 16, seed=0))
    optimizer = AdamS([p], lr=0.02, total_steps=100, l1_decay=0.1, n=2, m=4)
    for step in range(250):
        p.grad = 1e-3 * randn(8, 16, seed=step)
        optimizer.step()
    mask = nm_mask(p)
    assert p[~mask].abs().max() < 0.05
    assert p[mask].abs().median() > 0.3


def test_groups_and_parameters_that_stay_dense(form):
    mine, plain = parameters(), parameters()
    dense = AdamS([{"params": mine[:2], "sparse": False}, {"params": mine[2:]}], **KNOBS)
    dense.leave_dense(mine[2:3])
    train(dense, mine, 6)
    assert not any("mask" in state for state in dense.state.values())
    train(AdamS(plain, **{**KNOBS, "n": 4, "m": 4}), plain, 6)
    for p, q in zip(mine, plain, strict=True):
        assert torch.equal(p, q)


def test_resumed_between_two_masks(form):
    whole, cut = parameters(), parameters()
    make = partial(AdamS, **KNOBS, mask_interval=4)
    train(make(whole), whole, 9)
    first = make(cut)
    train(first, cut, 6)
    resumed = make(cut)
    resumed.load_state_dict(first.state_dict())
    assert resumed.state[cut[0]]["mask"].dtype == torch.bool
    train(resumed, cut, 9, start=6)
    assert all(map(torch.equal, whole, cut))


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in parameters()]
    optimizer = AdamS(params, **KNOBS, mask_interval=2)
    for step in range(5):
        for number, p in enumerate(params):
            p.grad = distribute_tensor(randn(*p.shape, seed=100 + 10 * step + number), mesh, [Shard(0)])
        optimizer.step()
    return [p.detach().full_tensor() for p in params]


def test_shards(run_processes):
    params = parameters()
    train(AdamS(params, **KNOBS, mask_interval=2), params, 5)
    for found in run_processes(sharded, 2):
        for p, whole in zip(found, params, strict=True):
            torch.testing.assert_close(p, whole.detach(), rtol=1e-13, atol=1e-13)


def test_bad_input_is_refused():
    p = nn.Parameter(torch.zeros(2, 4))
    for name, value in (("total_steps", 0), ("mask_interval", 0), ("l1_decay", -1.0), ("eps", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            AdamS([p], **{name: value})
    with pytest.raises(ValueError, match="n must lie in 1 to m, got n=5 and m=4"):
        AdamS([p], n=5)
    p.grad = torch.ones(2, 4)
    with pytest.raises(RuntimeError, match=r"AdamS needs total_steps: .* or add leyden.callbacks.CAST"):
        AdamS([p]).step()
