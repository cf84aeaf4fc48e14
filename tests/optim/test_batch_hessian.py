import pytest
import torch

from leyden.optim import batch_hessian_extreme


def test_by_hand():
    assert batch_hessian_extreme(3.0, 0.5, 100, 25) == pytest.approx(3.0 + 1.0 / 3.0)  # r = 0.5 * sqrt(100 / 25) = 1
    assert batch_hessian_extreme(0.9, 0.5, 100, 25) == pytest.approx(2.0)
    assert batch_hessian_extreme(3.0, 0.5, 100, 25, dataset_size=50) == pytest.approx(3.0 + 0.5 / 3.0)
    assert batch_hessian_extreme(3.0, 0.5, 100, 50, dataset_size=50) == 3.0
    assert batch_hessian_extreme(3.0, 0.0, 100, 1) == 3.0


def test_stable_rates_follow_the_rules_in_their_regimes():
    def rate(batch_size, **kwargs):
        return 2.0 / batch_hessian_extreme(batch_size=batch_size, num_params=10**6, **kwargs)

    noise = {"eigenvalue": 0.0, "sigma": 1.0}
    assert rate(400, **noise) / rate(100, **noise) == pytest.approx(2.0)  # the root
    mixed = {"eigenvalue": 101.0, "sigma": 1.0}  # r is 100 for batches of 100, and r^2 / eigenvalue half of the extreme
    assert 1.0 < rate(100, **mixed) / rate(50 * 2 - 1, **mixed) < 100 / 99
    assert rate(10**9, **mixed) == pytest.approx(2.0 / 101.0, rel=1e-6)  # a constant


@pytest.mark.parametrize("eigenvalue", [0.0, 2.0])
def test_random_matrices_have_these_extremes(eigenvalue):
    size, batch_size, sigma = 600, 100, 0.25  # r = 0.61
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    noise = (noise + noise.T) / 2**0.5 * sigma / batch_size**0.5
    mode = torch.full((size,), size**-0.5, dtype=torch.float64)
    largest = torch.linalg.eigvalsh(noise + eigenvalue * torch.outer(mode, mode))[-1].item()
    assert largest == pytest.approx(batch_hessian_extreme(eigenvalue, sigma, size, batch_size), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0, 1, 1), "eigenvalue must be at least 0, got -1.0"),
        ((1.0, -1.0, 1, 1), "sigma must be at least 0, got -1.0"),
        ((1.0, 1.0, 0, 1), "num_params must be at least 1, got 0"),
        ((1.0, 1.0, 1, 0), "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_hessian_extreme(*arguments)
    with pytest.raises(ValueError, match="batch_size must be at least 1 and at most dataset_size, 50, got 51"):
        batch_hessian_extreme(1.0, 1.0, 1, 51, dataset_size=50)
