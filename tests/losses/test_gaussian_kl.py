import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from leyden.losses import GaussianKL, gaussian_kl

MEAN = torch.arange(24, dtype=torch.float64).sin().view(2, 3, 4)
VARIANCE = torch.arange(24, dtype=torch.float64).cos().exp().view(2, 3, 4)


def reference():
    """Of torch.distributions, ``[2, 3]``."""
    standard = Independent(Normal(torch.zeros_like(MEAN), torch.ones_like(MEAN)), 1)
    return kl_divergence(Independent(Normal(MEAN, VARIANCE.sqrt()), 1), standard)


@pytest.mark.parametrize(
    ("reduction", "reduced"), [("none", torch.Tensor.clone), ("sum", torch.sum), ("mean", torch.mean)]
)
def test_against_torch_distributions(reduction, reduced):
    torch.testing.assert_close(
        gaussian_kl(MEAN, VARIANCE, reduction=reduction), reduced(reference()), rtol=1e-12, atol=0
    )
    twin = GaussianKL(reduction=reduction)(MEAN, VARIANCE)
    assert torch.equal(twin, gaussian_kl(MEAN, VARIANCE, reduction=reduction))


def test_zero_only_for_the_standard_normal():
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert gaussian_kl(zeros, ones).item() == 0.0
    assert gaussian_kl(zeros + 0.1, ones).item() > 0.0
    assert gaussian_kl(zeros, 1.1 * ones).item() > 0.0
    assert gaussian_kl(zeros, 0.9 * ones).item() > 0.0


def test_gradcheck_and_the_default_is_the_sum():
    mean, variance = MEAN.clone().requires_grad_(), VARIANCE.clone().requires_grad_()
    assert torch.autograd.gradcheck(gaussian_kl, (mean, variance))
    assert torch.equal(GaussianKL()(MEAN, VARIANCE), gaussian_kl(MEAN, VARIANCE, reduction="sum"))


def test_half_precision_is_computed_in_float32():
    mean, variance = MEAN.half(), VARIANCE.half()
    value = gaussian_kl(mean, variance)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), gaussian_kl(mean.double(), variance.double()), rtol=1e-6, atol=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"variance must have the shape of mean, \(2, 3, 4\), got \(2, 3\)"):
        gaussian_kl(MEAN, VARIANCE[..., 0])
    with pytest.raises(ValueError, match="reduction must be"):
        gaussian_kl(MEAN, VARIANCE, reduction="max")
