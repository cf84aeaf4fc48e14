import pytest
import torch

from leyden.inference import gradient_ascent

TOP = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
START = torch.tensor([[2.0, 0.0], [-1.0, 3.0]], dtype=torch.float64)


def hill(x):
    return -0.5 * (x - TOP).square().sum(-1)


def test_steps_towards_a_top_by_hand():
    # the distance from the top shrinks by 1 - lr a step
    found = gradient_ascent(hill, START, lr=0.25, steps=3)
    torch.testing.assert_close(found, TOP + 0.75**3 * (START - TOP))
    assert torch.equal(gradient_ascent(hill, START, steps=0), START)
    assert not found.requires_grad


def test_bounds():
    found = gradient_ascent(hill, START.clamp(0.0, 2.0), lr=0.5, steps=50, bounds=(0.0, 2.0))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0], [0.5, 0.0]], dtype=torch.float64))


def test_parameters_get_no_gradient_and_no_grad_is_no_hindrance():
    layer = torch.nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        found = gradient_ascent(lambda x: layer(x).flatten(), START, lr=1.0, steps=2)
    torch.testing.assert_close(found, START + 2.0 * layer.weight.detach())
    assert layer.weight.grad is None


def test_bad_input():
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        gradient_ascent(hill, START, lr=0.0)
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        gradient_ascent(hill, START, steps=-1)
