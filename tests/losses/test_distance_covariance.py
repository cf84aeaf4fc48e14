import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import one_hot

from leyden.losses import (
    concatenated_distance_covariance,
    distance_correlation,
    distance_covariance,
    joint_distance_covariance,
)

I = torch.arange(8, dtype=torch.float64)  # noqa: E741
X = torch.stack([torch.sin(I), torch.cos(2 * I)], 1)  # [8, 2]
Y = (I * I % 5) / 2  # [8]
Z = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def random_variables(*sizes: int, num_samples: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_samples, size, generator=generator, dtype=torch.float64) for size in sizes]


def test_values_of_the_dcor_package():
    """``distance_covariance_sqr``, ``distance_correlation_sqr`` and ``u_distance_covariance_sqr`` of dcor 0.7."""
    assert distance_covariance(X, Y).item() == pytest.approx(0.13504269844003658)
    assert distance_correlation(X, Y).item() == pytest.approx(0.2678296129623256)
    assert distance_covariance(X, Y, unbiased=True).item() == pytest.approx(-0.022329803998384357)


def test_values_of_the_authors_code():
    """agi-lab/beyond-correlation at fd58a3b, python/general/dcovs.py, with the category Z as one-hot columns."""
    assert distance_correlation(X, Y, unbiased=True).item() == pytest.approx(-0.04388623383601082)
    assert joint_distance_covariance([X, Y, Z], unbiased=True).item() == pytest.approx(0.08614150508181662)
    assert concatenated_distance_covariance(Y, [X, Z], unbiased=True).item() == pytest.approx(-0.048252298066742375)


def test_two_samples_by_hand():
    x = torch.tensor([0.0, 1.0])  # centred distances -1/2 and 1/2
    assert distance_covariance(x, 3.0 * x).item() == pytest.approx(0.75)
    assert joint_distance_covariance([x, x, x]).item() == pytest.approx((1.5**3 + 0.5**3) / 2 - 1.0)
    assert joint_distance_covariance([x, x, x], c=2.0).item() == pytest.approx((2.5**3 + 1.5**3) / 2 - 8.0)


@pytest.mark.parametrize("unbiased", [False, True])
def test_invariants(unbiased):
    x, y, z = random_variables(3, 2, 1)
    value = distance_covariance(x, y, unbiased=unbiased)
    rotation = torch.linalg.qr(random_variables(3, num_samples=3)[0])[0]

    def same(other):
        torch.testing.assert_close(other, value)

    same(distance_covariance(y, x, unbiased=unbiased))
    same(distance_covariance(x @ rotation + 5.0, y - 2.0, unbiased=unbiased))
    same(distance_covariance(-3.0 * x, y, unbiased=unbiased) / 3.0)
    same(concatenated_distance_covariance(x, [y], unbiased=unbiased))
    same(concatenated_distance_covariance(x, [y[:, :1], y[:, 1]], unbiased=unbiased))
    same(joint_distance_covariance([x, y], c=2.0, unbiased=unbiased))
    torch.testing.assert_close(
        joint_distance_covariance([x, y, z], c=2.0, unbiased=unbiased),
        joint_distance_covariance([z, x, y], c=2.0, unbiased=unbiased),
    )
    assert distance_covariance(x, torch.ones(7), unbiased=unbiased) == 0.0
    assert distance_correlation(x, torch.ones(7), unbiased=unbiased) == 0.0
    assert distance_correlation(x, 2.0 * x, unbiased=unbiased).item() == pytest.approx(1.0)


def test_the_unbiased_estimate_is_right_on_average_and_the_other_is_too_high():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2000, 8, generator=generator, dtype=torch.float64)  # independent
    unbiased = torch.stack([distance_covariance(a, b, unbiased=True) for a, b in zip(x, y, strict=True)])
    biased = torch.stack([distance_covariance(a, b) for a, b in zip(x, y, strict=True)])
    assert abs(unbiased.mean()) < 4.0 * unbiased.std() / 2000**0.5
    assert biased.mean() > 40.0 * biased.std() / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_are_categories(dtype):
    one, two = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 1, 0, 0, 1])
    columns = torch.stack([one, two], 1).to(dtype)
    expected = torch.cat([one_hot(one), one_hot(two)], 1).double()
    x = random_variables(1, num_samples=5)[0]
    torch.testing.assert_close(distance_covariance(x, columns), distance_covariance(x, expected))
    torch.testing.assert_close(
        concatenated_distance_covariance(x, [one.to(dtype), two.to(dtype)]), distance_covariance(x, expected)
    )


def test_intersections_count():
    """A prediction of two attributes together, of which neither alone says anything: fairness gerrymandering."""
    gender, region = torch.tensor([0, 0, 1, 1]).repeat(5), torch.tensor([0, 1, 0, 1]).repeat(5)
    prediction = (gender != region).double()
    assert distance_covariance(prediction, gender).item() == pytest.approx(0.0, abs=1e-12)
    assert distance_covariance(prediction, region).item() == pytest.approx(0.0, abs=1e-12)
    assert concatenated_distance_covariance(prediction, [gender, region]) > 0.01
    assert joint_distance_covariance([prediction, gender, region]) > 0.01
    assert joint_distance_covariance([gender, region, gender[:1].expand(20)]).item() == pytest.approx(0.0, abs=1e-6)


def test_own_dependence_of_the_attributes_has_no_gradient():
    """For a constant prediction JdCov is c times that of the attributes, which no prediction changes."""
    one, two = random_variables(1, 2)
    constant = torch.zeros(7, dtype=torch.float64)
    expected = 1.5 * joint_distance_covariance([one, two], c=1.5)
    torch.testing.assert_close(joint_distance_covariance([constant, one, two], c=1.5), expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients(unbiased):
    x, y = random_variables(2, 1, num_samples=5)
    x.requires_grad_()

    def values(x):
        return torch.stack(
            [
                concatenated_distance_covariance(x, [y, Z[:5]], unbiased=unbiased),
                joint_distance_covariance([x, y, Z[:5]], unbiased=unbiased),
                distance_correlation(x, [y, Z[:5]], unbiased=unbiased),
            ]
        )

    assert gradcheck(values, x)


def test_ties_have_a_finite_gradient():
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0], requires_grad=True)
    (distance_covariance(x, Z[:5]) + distance_correlation(x, Z[:5]) + distance_correlation(0.0 * x, Z[:5])).backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0.0


def test_half_precision_is_computed_in_float32():
    x, y = random_variables(2, 1)
    value = distance_covariance(x.bfloat16(), y.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, distance_covariance(x.bfloat16().float(), y.bfloat16().float()))


def test_bad_input():
    x = torch.zeros(5, 2)
    with pytest.raises(
        ValueError, match=r"must have the shapes \[N\] or \[N, p\] with one N, got \[\(5, 2\), \(4,\)\]"
    ):
        distance_covariance(x, torch.zeros(4))
    with pytest.raises(ValueError, match=r"must have the shapes \[N\] or \[N, p\]"):
        distance_covariance(torch.zeros(5, 2, 2), x)
    with pytest.raises(ValueError, match=r"must have the shapes \[N\] or \[N, p\]"):
        distance_covariance(torch.tensor(1.0), x)
    with pytest.raises(ValueError, match="at least 1 samples, got 0"):
        distance_covariance(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        distance_covariance(torch.zeros(3), torch.zeros(3), unbiased=True)
    with pytest.raises(ValueError, match="variables must be two or more, got 1"):
        joint_distance_covariance([x])
    with pytest.raises(ValueError, match="c must be positive and finite, got 0"):
        joint_distance_covariance([x, x], c=0.0)
    with pytest.raises(ValueError, match="attributes must be one or more, got none"):
        concatenated_distance_covariance(x, [])
