import math

import pytest
import torch

from leyden.weights import interpolate, t3_coefficient

DIVERGENCE = torch.tensor([0.0, 0.1, math.log(2.0)], dtype=torch.float64)


def test_coefficients_by_hand():
    # the sigmoid of ln(2) / 2 is sqrt(2) / (1 + sqrt(2)), that of 0.05 is 0.51249739648...
    expected = [0.5, 0.5124973964842103, math.sqrt(2.0) / (1.0 + math.sqrt(2.0))]
    torch.testing.assert_close(t3_coefficient(DIVERGENCE), torch.tensor(expected, dtype=torch.float64))
    within = t3_coefficient(DIVERGENCE, lambda_min=0.2, lambda_max=0.7)
    torch.testing.assert_close(within, 0.2 + 0.5 * torch.tensor(expected, dtype=torch.float64))
    # the sigmoid of 4 ln(2) is 16 / 17
    steep = t3_coefficient(DIVERGENCE, lambda_min=-1.0, gamma=4.0)
    assert steep[0] == 0.0
    assert steep[2].item() == pytest.approx(15 / 17)
    batch = t3_coefficient(DIVERGENCE, batch=True)
    assert batch.shape == ()
    assert batch.item() == pytest.approx(sum(expected) / 3)


def test_limits_and_steepness():
    for batch in (False, True):
        static = t3_coefficient(DIVERGENCE, lambda_min=0.3, lambda_max=0.3, gamma=9.0, batch=batch)
        torch.testing.assert_close(static, torch.full_like(static, 0.3))
        flat = t3_coefficient(DIVERGENCE, lambda_min=0.2, lambda_max=0.6, gamma=0.0, batch=batch)
        torch.testing.assert_close(flat, torch.full_like(flat, 0.4))
    assert t3_coefficient(DIVERGENCE[2:], batch=True) == t3_coefficient(DIVERGENCE[2:])[0]


def states():
    a = {"w": torch.tensor([0.1, -3.0]), "n": torch.tensor(3), "mean": torch.tensor([1.0])}
    return a, {"w": torch.tensor([0.7, 5.0]), "n": torch.tensor(8), "mean": torch.tensor([2.0])}


def test_interpolation():
    a, b = states()
    mixed = interpolate(a, b, 0.25)
    torch.testing.assert_close(mixed["w"], torch.tensor([0.55, 3.0]))
    torch.testing.assert_close(mixed["mean"], torch.tensor([1.75]))
    assert mixed["n"] == 8
    assert torch.equal(interpolate(a, b, torch.tensor(0.25))["w"], mixed["w"])
    for name in ("w", "mean"):
        assert torch.equal(interpolate(a, b, 1.0)[name], a[name])
        assert torch.equal(interpolate(a, b, 0.0)[name], b[name])
        torch.testing.assert_close(interpolate(a, a, 0.3)[name], a[name])
    assert torch.equal(a["w"], states()[0]["w"])


def test_bad_input():
    a, b = states()
    with pytest.raises(ValueError, match="lambda_min and lambda_max must be ordered.*got 0.6 and 0.4"):
        t3_coefficient(DIVERGENCE, lambda_min=0.6, lambda_max=0.4)
    with pytest.raises(ValueError, match="at most 1 .*got 0.0 and 1.5"):
        t3_coefficient(DIVERGENCE, lambda_max=1.5)
    with pytest.raises(ValueError, match="middle of at least 0, got -2.0 and 1.0"):
        t3_coefficient(DIVERGENCE, lambda_min=-2.0)
    with pytest.raises(ValueError, match="gamma must be finite and at least 0, got -1"):
        t3_coefficient(DIVERGENCE, gamma=-1.0)
    with pytest.raises(ValueError, match=r"divergence must be \[N\], one per sample, got \(\)"):
        t3_coefficient(DIVERGENCE[0])
    with pytest.raises(ValueError, match=r"divergence must be \[N\], one per sample, got \(0,\)"):
        t3_coefficient(DIVERGENCE[:0], batch=True)
    with pytest.raises(ValueError, match="t must be one finite number, got nan"):
        interpolate(a, b, math.nan)
    with pytest.raises(ValueError, match="state dict 1 has no 'n'"):
        interpolate(a, {name: b[name] for name in ("w", "mean")}, 0.5)
    with pytest.raises(ValueError, match="the shapes of 'w' differ"):
        interpolate(a, b | {"w": torch.zeros(3)}, 0.5)
