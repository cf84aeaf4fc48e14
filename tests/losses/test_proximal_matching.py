import math

import pytest
import torch

from leyden.losses import ProximalMatching, proximal_matching_gamma, proximal_matching_loss, proximal_prior
from leyden.nn import LearnedProximalNetwork

PREDICTION = torch.tensor([[-0.0578, 0.0119], [-0.0086, 0.0054], [-0.1009, -0.0071]], dtype=torch.float64)
TARGET = torch.tensor([[0.5, -0.5], [1.0, 1.0], [-0.4, 0.0]], dtype=torch.float64)


def test_values_by_hand():
    squares = [0.5578**2 + 0.5119**2, 1.0086**2 + 0.9946**2, 0.2991**2 + 0.0071**2]
    each = [1.0 - math.exp(-square / 1.3**2) for square in squares]
    values = proximal_matching_loss(PREDICTION, TARGET, gamma=1.3, reduction="none")
    assert values.tolist() == pytest.approx(each, rel=1e-12)
    assert ProximalMatching(gamma=1.3)(PREDICTION, TARGET).item() == pytest.approx(sum(each) / 3, rel=1e-12)
    images = proximal_matching_loss(PREDICTION.view(3, 1, 2, 1), TARGET.view(3, 1, 2, 1), gamma=1.3, reduction="sum")
    assert images.item() == pytest.approx(sum(each), rel=1e-12)


def test_the_authors_number():
    # `ExpDiracSrgt` of ZhenghanFang/learned-proximal-networks, commit cbc3cfa, on the outputs that
    # tests/nn/test_learned_proximal.py quotes
    prediction = torch.tensor(
        [
            [-0.05775198854097222, 0.011860429890373277],
            [-0.008643603051212381, 0.0054100089344589425],
            [-0.10087526789228958, -0.007125682005901084],
        ],
        dtype=torch.float64,
    )
    value = proximal_matching_loss(prediction, TARGET, gamma=1.3)
    assert value.item() == pytest.approx(0.3447168850217535, rel=1e-12)


def test_gradients_are_finite_where_nothing_is_wrong():
    prediction = TARGET.clone().requires_grad_()
    proximal_matching_loss(prediction, TARGET, gamma=0.5).backward()
    assert torch.equal(prediction.grad, torch.zeros_like(TARGET))
    assert torch.autograd.gradcheck(lambda x: proximal_matching_loss(x, TARGET, gamma=1.3), PREDICTION.requires_grad_())


def test_half_precision_is_computed_in_float32():
    value = proximal_matching_loss(PREDICTION.bfloat16(), TARGET.bfloat16(), gamma=1.3)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.3447, rel=0.01)


def test_widths_halve_from_stage_to_stage():
    widths = [proximal_matching_gamma(step, gamma_min=0.1, stages=3, total_steps=10) for step in range(11)]
    assert widths == pytest.approx([0.4] * 3 + [0.2] * 3 + [0.1] * 5)


def test_the_prior_of_a_quadratic_potential():
    # psi(y) = c ||y||^2 / 2 has f(y) = c y, the proximal operator of (1/c - 1) ||x||^2 / 2
    y = torch.randn(4, 1, 3, dtype=torch.float64)
    c = 0.7
    x = c * y
    prior = proximal_prior(y, x, 0.5 * c * y.square().sum((1, 2)))
    torch.testing.assert_close(prior, 0.5 * (1.0 / c - 1.0) * x.square().sum((1, 2)))


def test_the_prior_of_soft_thresholding():
    y = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64).unsqueeze(-1)
    x = y.sign() * (y.abs() - 1.0).clamp(min=0.0)
    prior = proximal_prior(y, x, 0.5 * (y.abs() - 1.0).clamp(min=0.0).square().squeeze(-1))
    torch.testing.assert_close(prior, x.abs().squeeze(-1))


def test_laplacian_samples_give_soft_thresholding():
    """The mode of what lies behind a noisy Laplacian sample is its soft threshold; the mean is another function."""
    torch.manual_seed(0)
    network = LearnedProximalNetwork(1, (32, 32))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    grid = torch.linspace(-3.0, 3.0, 121).unsqueeze(-1)
    prox = grid.sign() * (grid.abs() - 1.0).clamp(min=0.0)
    errors = []
    for step in range(900):
        x = torch.distributions.Laplace(0.0, 1.0).sample((2000, 1))
        y = x + torch.randn_like(x)
        if step < 300:
            loss = (network(y) - x).square().mean()
        else:
            optimizer.param_groups[0]["lr"] = 5e-3
            gamma = proximal_matching_gamma(step - 300, gamma_min=0.5, stages=3, total_steps=600)
            loss = proximal_matching_loss(network(y), x, gamma=gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.clamp_weights_()
        if step in (299, 899):
            with torch.no_grad():
                errors.append((network(grid) - prox).abs().mean().item())
    assert errors[0] > 0.18
    assert errors[1] < 0.13  # not 0, because the width is not


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: proximal_matching_loss(TARGET, TARGET[:1], gamma=1.0),
            r"the shape of prediction, \(3, 2\), got \(1, 2\)",
        ),
        (lambda: proximal_matching_loss(TARGET, TARGET, gamma=0.0), "gamma must be positive, got 0.0"),
        (lambda: proximal_matching_gamma(0, gamma_min=0.0, total_steps=8), "gamma_min must be positive, got 0.0"),
        (
            lambda: proximal_matching_gamma(0, gamma_min=1.0, stages=0, total_steps=8),
            "stages must be at least 1, got 0",
        ),
        (lambda: proximal_matching_gamma(0, gamma_min=1.0, total_steps=3), "at least the number of stages, 4, got 3"),
        (
            lambda: proximal_prior(TARGET, TARGET, TARGET),
            r"potential the shape \[N\], got \(3, 2\), \(3, 2\) and \(3, 2\)",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
