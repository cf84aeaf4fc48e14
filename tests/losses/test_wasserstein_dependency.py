import math

import pytest
import torch
from torch import nn

from leyden.losses import WassersteinDependency, lipschitz_penalty, wasserstein_dependency_loss

SCORES = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 0.5, 3.0], [0.0, 1.0, 4.0]], dtype=torch.float64)


def test_dual_by_hand():
    # pairs: 2 + 0.5 + 4; others: 0 + 1 - 1 + 3 + 0 + 1
    value = wasserstein_dependency_loss(SCORES, form="dual")
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(4.0 / 6.0 - 6.5 / 3.0)


def test_nce_is_cross_entropy_less_its_value_at_equal_scores():
    value = wasserstein_dependency_loss(SCORES)
    assert value.item() == pytest.approx(nn.functional.cross_entropy(SCORES, torch.arange(3)).item() - math.log(3))


@pytest.mark.parametrize("form", ["nce", "dual"])
def test_invariants(form):
    loss = WassersteinDependency(form=form)
    assert loss(torch.full((4, 4), 7.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(SCORES + 5.0).item() == pytest.approx(loss(SCORES).item())
    assert loss(100.0 * torch.eye(3)).item() == pytest.approx(-math.log(3) if form == "nce" else -100.0)
    assert loss(SCORES.bfloat16()).dtype == torch.float32


def test_penalty_of_a_linear_critic():
    weight = torch.tensor([0.0, 1.5, -2.0], dtype=torch.float64, requires_grad=True)  # of norm 2.5
    x, y = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    value = lipschitz_penalty(lambda x, y: torch.cat([x, y], 1) @ weight, x, y)
    assert value.item() == pytest.approx(1.5**2)
    (gradient,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(gradient, 2.0 * 1.5 * weight.detach() / 2.5)
    assert lipschitz_penalty(lambda x: x @ weight[1:], y, target=3.0).item() == pytest.approx(0.25)
    assert lipschitz_penalty(lambda x: x @ weight[1:], y, target=3.0, one_sided=True).item() == 0.0
    assert lipschitz_penalty(lambda x: x @ weight[1:], y, one_sided=True).item() == pytest.approx(1.5**2)


def test_penalty_of_a_curved_critic():
    # f(x, y) = |x|^2 y / 2 has the gradients x y and |x|^2 / 2
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    y = torch.tensor([1.0, 0.5])
    norms = [math.hypot(5.0, 12.5), math.hypot(1.0, 2.0)]
    value = lipschitz_penalty(lambda x, y: 0.5 * x.square().sum(1) * y, x, y, target=2.0)
    assert value.item() == pytest.approx(sum((norm - 2.0) ** 2 for norm in norms) / 2)
    assert not x.requires_grad


def test_penalty_at_a_flat_critic_has_a_finite_gradient():
    layer = nn.Linear(3, 1)
    nn.init.zeros_(layer.weight)
    value = lipschitz_penalty(lambda x: layer(x).squeeze(1), torch.randn(4, 3))
    value.backward()
    assert value.item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(layer.weight.grad, torch.zeros(1, 3))


def test_penalty_is_exact_under_autocast_and_without_gradients():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.randn(4, 3)
    value = lipschitz_penalty(critic, x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(lipschitz_penalty(critic, x), value)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 1), (0, 0)])
def test_bad_scores(shape):
    with pytest.raises(ValueError, match=r"scores must have shape \[N, N\] with N of 2 or more, got \("):
        wasserstein_dependency_loss(torch.zeros(shape))


def test_bad_input():
    with pytest.raises(ValueError, match="form must be 'nce' or 'dual', got 'kl'"):
        wasserstein_dependency_loss(SCORES, form="kl")
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"inputs must have one number of rows, 1 or more, got \[4, 2\]"):
        lipschitz_penalty(lambda x, y: x.sum(1), x, x[:2])
    with pytest.raises(ValueError, match=r"inputs must have one number of rows, 1 or more, got \[\]"):
        lipschitz_penalty(lambda: x.sum(1))
    with pytest.raises(ValueError, match="inputs must hold real numbers, got torch.int64"):
        lipschitz_penalty(lambda x: x.sum(1), x.long())
    with pytest.raises(ValueError, match=r"critic must give one score per row, \[4\], got \(4, 3\)"):
        lipschitz_penalty(lambda x: x, x)
    with pytest.raises(ValueError, match="but has a batch norm: use another norm"):
        lipschitz_penalty(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Flatten(0)), x)
