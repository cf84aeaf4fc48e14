"""AdamR against the authors' numbers, Adam, and by hand."""

import copy

import pytest
import torch
from torch.nn import Parameter

from leyden.optim import AdamR

WEIGHTS = [[[1.0, -2.0], [0.5, 3.0]], [0.25, -0.75]]
ANCHORS = [[[0.5, -1.0], [0.5, 2.0]], [0.0, -1.0]]
# printed by AdamR.py of vengdeng/DAREx (commit 4c796da) for these weights and gradients
AUTHORS = {
    "l2": [[[0.6799176, -1.6445711], [0.2152642, 2.6445711]], [-0.0254531, -0.5098934]],
    "l1": [[[0.6352608, -1.6352607], [0.2588228, 2.6352606]], [-0.0876966, -0.5571451]],
}


def parameters(dtype=torch.float32):
    return [Parameter(torch.tensor(weight, dtype=dtype)) for weight in WEIGHTS]


def anchors():
    return [torch.tensor(anchor) for anchor in ANCHORS]


def train(optimizer, params, steps=range(3), scale=1.0):
    for step in steps:
        params[0].grad = scale * torch.tensor([[0.1, -0.2], [0.3, 0.4]], dtype=params[0].dtype) * (step + 1)
        params[1].grad = scale * torch.tensor([1.0, -0.5], dtype=params[0].dtype) * (2 - step)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("penalty", AUTHORS)
def test_the_authors_numbers(penalty, force_foreach):
    for force in (lambda: None, force_foreach):
        force()
        params = parameters()
        train(AdamR(params, lr=0.1, weight_decay=0.2, anchor=anchors(), penalty=penalty), params)
        for p, expected in zip(params, AUTHORS[penalty], strict=True):
            torch.testing.assert_close(p.detach(), torch.tensor(expected), rtol=0, atol=2e-7)


def test_without_pull_it_is_adam():
    mine, torchs = parameters(torch.float64), parameters(torch.float64)
    train(AdamR(mine, lr=0.1, weight_decay=0.0), mine)
    torch.testing.assert_close(mine, train(torch.optim.Adam(torchs, lr=0.1), torchs), rtol=1e-12, atol=1e-12)


def test_the_first_step_from_the_anchor_is_adams():
    mine, torchs = parameters(torch.float64), parameters(torch.float64)
    train(AdamR(mine, lr=0.1, weight_decay=5.0), mine, range(1))
    torch.testing.assert_close(mine, train(torch.optim.Adam(torchs, lr=0.1), torchs, range(1)), rtol=1e-12, atol=1e-12)


def test_the_pull_is_of_all_groups_and_of_the_gradients_size():
    # first step from an anchor that is 1 away: v is g^2, so that r is the root mean square of all gradients
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
    for scale in (1.0, 10.0):
        params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(1))]
        groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]
        optimizer = AdamR(groups, lr=0.1, weight_decay=0.5, eps=0.0, anchor=[torch.ones(2), torch.ones(1)])
        for p, grad in zip(params, grads, strict=True):
            p.grad = scale * grad
        optimizer.step()
        r = scale * (169 / 3) ** 0.5
        assert params[0].tolist() == pytest.approx([0.1 * 0.5 / r - 0.1] * 2, rel=1e-5)
        assert params[1].tolist() == pytest.approx([-0.1], rel=1e-5)


def test_the_anchor_is_saved():
    params = parameters()
    optimizer = AdamR(params, lr=0.1, weight_decay=0.2)
    train(optimizer, params, range(1))
    other = parameters()
    with torch.no_grad():
        for p, trained in zip(other, params, strict=True):
            p.copy_(trained)
    resumed = AdamR(other, lr=0.1, weight_decay=0.2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state[other[0]]["anchor"].tolist() == WEIGHTS[0]
    after = train(resumed, other, range(1, 3))
    assert all(map(torch.equal, after, train(optimizer, params, range(1, 3))))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"betas": (1.0, 0.9)}, "betas must be 2 numbers"),
        ({"penalty": "l3"}, "penalty must be one of l2, l1, got 'l3'"),
        ({"anchor": [torch.ones(2, 2)]}, "anchor must be 2 tensors of the shapes of the parameters"),
    ],
)
def test_wrong_arguments(knobs, message):
    with pytest.raises(ValueError, match=message):
        AdamR(parameters(), **knobs)
