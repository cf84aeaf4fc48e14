import math

import pytest
import torch
from torch import nn

from leyden.inference import pgd

X = torch.rand(5, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SLOPE = torch.tensor([0.3, -2.0, 1.0, 0.5, -0.1, 4.0], dtype=torch.float64).view(1, 1, 2, 3)


def linear(x):
    return (SLOPE * x).flatten(1).sum(1)


def test_largest_linear_score_in_each_ball():
    far = pgd(linear, X, norm="linf", eps=0.3, step_size=0.07, steps=20, bounds=None)
    torch.testing.assert_close(far, X + 0.3 * SLOPE.sign())
    inside = pgd(linear, X, norm="linf", eps=0.3, step_size=0.07, steps=20)
    torch.testing.assert_close(inside, (X + 0.3 * SLOPE.sign()).clamp(0.0, 1.0))
    far = pgd(linear, X, norm="l2", eps=0.5, step_size=0.2, steps=10, bounds=None)
    torch.testing.assert_close(far, X + 0.5 * SLOPE / SLOPE.norm())


def test_steps_have_their_length_and_may_be_none():
    assert torch.equal(pgd(linear, X, steps=0), X)
    for norm, order in (("l2", 2), ("linf", math.inf)):
        moved = pgd(linear, X, norm=norm, step_size=0.01, steps=1, bounds=None)
        assert (moved - X).flatten(1).norm(order, dim=1) == pytest.approx(0.01)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_stays_in_ball_and_box_from_any_start(norm):
    start = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = X.clone()
    for steps in (0, 1, 7):
        found = pgd(lambda x: network(x).squeeze(1), x, norm=norm, eps=0.2, step_size=0.1, steps=steps, start=start)
        order = 2 if norm == "l2" else math.inf
        assert (found - X).flatten(1).norm(order, dim=1).max() <= 0.2 + 1e-12
        assert found.min() >= 0.0
        assert found.max() <= 1.0
        assert not found.requires_grad
    assert torch.equal(x, X)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"norm": "l1"}, "norm must be 'l2' or 'linf', got 'l1'"),
        ({"eps": -0.1}, "eps must be at least 0, got -0.1"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"step_size": math.nan}, "step_size must be at least 0, got nan"),
        ({"bounds": (1.0, 0.0)}, "bounds must be a smaller and a larger number"),
    ],
)
def test_bad_arguments(argument, match):
    with pytest.raises(ValueError, match=match):
        pgd(linear, X, **argument)
