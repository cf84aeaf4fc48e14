import math

import pytest
import torch

from leyden.optim import (
    dp_gradient,
    edgeworth_delta,
    edgeworth_epsilon,
    edgeworth_noise_multiplier,
    rdp_epsilon,
    rdp_noise_multiplier,
)

# (noise multiplier, sample rate, steps, delta), epsilon of PLDAccountant (value_discretization_interval=1e-4) and of
# RdpAccountant (orders 2 to 256) of Google's dp-accounting 0.6.0, PoissonSampledDpEvent of a GaussianDpEvent
EPSILONS = [
    ((1.0, 0.01, 1000, 1e-5), 1.8282436455855091, 2.1077530754515745),
    ((0.8, 0.05, 400, 1e-4), 9.216037200593401, 11.554945377139504),
    ((2.0, 0.1, 500, 1e-5), 5.5554699547216435, 6.089503111076504),
    ((1.5, 0.004, 5000, 1e-6), 0.9098459080282902, 0.9850080559385866),
    ((1.2, 1.0, 10, 1e-5), 14.119434305740837, 15.218358146709562),
    ((3.0, 0.5, 200, 1e-5), 12.730005317615868, 13.741986661493286),
]
# (epsilon, delta, sample rate, steps), noise multipliers by the same two (value_discretization_interval=1e-3)
MULTIPLIERS = [
    ((3.0, 1e-4, 64 / 1258, 380), 1.4465445381289677, 1.5595484305761709),
    ((1.0, 1e-5, 0.01, 1000), 1.4157524077677774, 1.5131228926024438),
    ((8.0, 1e-5, 0.02, 2000), 0.8465389725334362, 0.8927753972881656),
]


@pytest.mark.parametrize(("setting", "pld", "rdp"), EPSILONS)
def test_epsilon_against_dp_accounting(setting, pld, rdp):
    sigma, rate, steps, delta = setting
    knobs = {"noise_multiplier": sigma, "sample_rate": rate, "steps": steps}
    assert rdp_epsilon(delta, **knobs) == pytest.approx(rdp, rel=1e-9)
    found = edgeworth_epsilon(delta, **knobs)
    assert found == pytest.approx(pld, rel=0.06)
    assert found < rdp
    assert edgeworth_delta(found, **knobs) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(("setting", "pld", "rdp"), MULTIPLIERS)
def test_noise_against_dp_accounting(setting, pld, rdp):
    epsilon, delta, rate, steps = setting
    assert rdp_noise_multiplier(epsilon, delta, sample_rate=rate, steps=steps) == pytest.approx(rdp, rel=1e-5)
    found = edgeworth_noise_multiplier(epsilon, delta, sample_rate=rate, steps=steps)
    assert found == pytest.approx(pld, rel=0.021)
    assert found < 0.97 * rdp


@pytest.mark.parametrize("sigma", [0.7, 3.0])
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 5.0])
def test_whole_batches_have_a_closed_form(epsilon, steps, sigma):
    """B. Balle, Y.-X. Wang, 2018, theorem 8: the loss is normal, and the expansion is exact."""
    m = math.sqrt(steps) / sigma

    def cdf(x):
        return math.erfc(-x / math.sqrt(2.0)) / 2.0

    expected = cdf(-epsilon / m + m / 2) - math.exp(epsilon) * cdf(-epsilon / m - m / 2)
    found = edgeworth_delta(epsilon, noise_multiplier=sigma, sample_rate=1.0, steps=steps)
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_monotone_in_everything():
    base = {"noise_multiplier": 1.0, "sample_rate": 0.05, "steps": 300}
    deltas = [edgeworth_delta(epsilon, **base) for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert deltas == sorted(deltas, reverse=True)
    assert 0.0 <= deltas[-1] < deltas[0] <= 1.0
    middle = edgeworth_delta(1.0, **base)
    assert edgeworth_delta(1.0, **base | {"noise_multiplier": 1.2}) < middle
    assert edgeworth_delta(1.0, **base | {"sample_rate": 0.06}) > middle
    assert edgeworth_delta(1.0, **base | {"steps": 400}) > middle
    assert edgeworth_epsilon(0.999, **base) == 0.0


def grads(num_samples):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_samples, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))]


def test_without_noise_and_clipping_it_is_the_mean():
    found = dp_gradient(grads(6), max_grad_norm=1e9, noise_multiplier=0.0, expected_batch_size=6)
    for ours, theirs in zip(found, grads(6), strict=True):
        torch.testing.assert_close(ours, theirs.mean(0))


def test_clipping_by_hand_and_bound_of_a_sample():
    tensors = [torch.tensor([[3.0], [0.3]]), torch.tensor([[4.0], [0.4]])]  # norms 5 and 0.5
    found = dp_gradient(tensors, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=2)
    assert [g.item() for g in found] == pytest.approx([(0.6 + 0.3) / 2, (0.8 + 0.4) / 2], rel=1e-5)
    knobs = {"max_grad_norm": 0.7, "noise_multiplier": 0.0, "expected_batch_size": 1.0}
    whole, without = dp_gradient(grads(6), **knobs), dp_gradient([g[1:] for g in grads(6)], **knobs)
    moved = torch.stack([(a - b).square().sum() for a, b in zip(whole, without, strict=True)]).sum().sqrt()
    assert moved <= 0.7
    assert moved == pytest.approx(0.7, rel=1e-3)


def test_noise():
    knobs = {"max_grad_norm": 2.0, "noise_multiplier": 3.0, "expected_batch_size": 4.0}
    empty = [torch.zeros(0, 400, 300), torch.zeros(0, 5)]
    (large, small) = dp_gradient(empty, generator=torch.Generator().manual_seed(1), **knobs)
    assert large.std().item() == pytest.approx(1.5, rel=0.01)
    assert large.mean().item() == pytest.approx(0.0, abs=0.02)
    again = dp_gradient(empty, generator=torch.Generator().manual_seed(1), **knobs)
    assert torch.equal(again[1], small)
    given = grads(3)
    kept = [g.clone() for g in given]
    dp_gradient(given, **knobs)
    assert all(map(torch.equal, given, kept))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: edgeworth_delta(-1.0, noise_multiplier=1.0, sample_rate=0.1, steps=1), "epsilon must be at least 0"),
        (lambda: edgeworth_delta(1.0, noise_multiplier=0.0, sample_rate=0.1, steps=1), "noise_multiplier must be pos"),
        (lambda: edgeworth_epsilon(1e-9, noise_multiplier=1.0, sample_rate=0.1, steps=1), r"delta must lie in \[1e-8"),
        (lambda: edgeworth_noise_multiplier(1.0, 1e-5, sample_rate=1.1, steps=1), "sample_rate must lie in"),
        (lambda: edgeworth_noise_multiplier(0.0, 1e-5, sample_rate=0.1, steps=1), "epsilon must be positive"),
        (lambda: rdp_epsilon(0.0, noise_multiplier=1.0, sample_rate=0.1, steps=1), r"delta must lie in \(0, 1\)"),
        (lambda: rdp_noise_multiplier(1.0, 1e-5, sample_rate=0.1, steps=0), "steps must be at least 1"),
        (
            lambda: dp_gradient(grads(2), max_grad_norm=0.0, noise_multiplier=1.0, expected_batch_size=1),
            "max_grad_norm",
        ),
        (lambda: dp_gradient(grads(2), max_grad_norm=1.0, noise_multiplier=-1, expected_batch_size=1), "at least 0"),
        (lambda: dp_gradient(grads(2), max_grad_norm=1.0, noise_multiplier=1, expected_batch_size=0), "expected_batch"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
