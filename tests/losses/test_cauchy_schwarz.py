import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from leyden.losses import ConditionalCSDivergence, conditional_cs_divergence, cs_qmi, normalized_cs_qmi

I = torch.arange(8, dtype=torch.float64)  # noqa: E741
X = torch.stack([torch.sin(I), torch.cos(2 * I)], 1)  # [8, 2]
Y = ((I * I % 5) / 2).unsqueeze(1)
P = torch.cos(I).unsqueeze(1)


def random_rows(*sizes: int, num_samples: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_samples, size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize(
    ("sigma", "divergence", "qmi", "normalized"),
    [
        (1.0, 0.4696244903800664, 0.11003019195498465, 0.2733124027799663),
        (0.5, 2.1023760393843296, 0.36581125159934924, 0.32711471761050925),
    ],
)
def test_values_of_the_authors_code(sigma, divergence, qmi, normalized):
    """SJYuCNEL/Cauchy-Schwarz-Information-Bottleneck at 252f86b, ``CS_Div``, ``CS_QMI``, ``CS_QMI_normalized``."""
    assert conditional_cs_divergence(P, Y, X, sigma=sigma).item() == pytest.approx(divergence)
    assert conditional_cs_divergence(P.squeeze(1), Y.squeeze(1), X, sigma=sigma).item() == pytest.approx(divergence)
    assert ConditionalCSDivergence(sigma=sigma)(P, Y, X).item() == pytest.approx(divergence)
    assert cs_qmi(X, Y, sigma=sigma).item() == pytest.approx(qmi)
    assert normalized_cs_qmi(X, Y, sigma=sigma).item() == pytest.approx(normalized)


def test_one_sample_by_hand():
    """S(M) = M: the divergence is -2 log2 exp(-d^2 / (2 sigma^2))."""
    one = torch.zeros(1, 3)
    value = conditional_cs_divergence(torch.tensor([1.0]), torch.tensor([4.0]), one, sigma=2.0)
    assert value.item() == pytest.approx(9.0 / (4.0 * math.log(2.0)))
    assert cs_qmi(one, one).item() == pytest.approx(0.0, abs=1e-6)


def test_divergence_of_equals_is_zero_but_need_not_be_least():
    x, y = random_rows(3, 1, num_samples=12)
    assert conditional_cs_divergence(y, y, x).item() == pytest.approx(0.0, abs=1e-12)
    moved = y.clone().requires_grad_()
    conditional_cs_divergence(moved, y, x).backward()
    assert moved.grad.norm() > 1e-3


def test_invariants():
    x, y, p = random_rows(3, 2, 2)
    value, divergence = cs_qmi(x, y), conditional_cs_divergence(p, y, x)
    torch.testing.assert_close(cs_qmi(y, x), value)
    torch.testing.assert_close(cs_qmi(x + 7.0, y - 3.0), value)
    torch.testing.assert_close(cs_qmi(3.0 * x, 3.0 * y, sigma=3.0), value)
    torch.testing.assert_close(conditional_cs_divergence(p + 2.0, y + 2.0, x - 1.0), divergence)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(conditional_cs_divergence(p[order], y[order], x[order]), divergence)
    torch.testing.assert_close(cs_qmi(x.view(6, 3, 1), y), value)
    assert value > 0.0
    assert normalized_cs_qmi(x, x).item() == pytest.approx(1.0)
    assert cs_qmi(x, torch.ones_like(y)).item() == pytest.approx(0.0, abs=1e-12)


def test_constant_features_have_no_information_and_a_finite_gradient():
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    features = torch.ones(16, 3, requires_grad=True)
    value = normalized_cs_qmi(x, features)
    value.backward()
    assert 0.0 <= value.item() < 1e-2
    assert torch.isfinite(features.grad).all()


def test_far_predictions_are_finite():
    """In float32, kernels at a distance of 50 are zero, and only their logarithms are not."""
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    prediction, target = torch.full((8,), 50.0, requires_grad=True), torch.zeros(8)
    value = conditional_cs_divergence(prediction, target, x)
    value.backward()
    assert value.item() == pytest.approx(2500.0 / math.log(2.0))
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad > 0.0).all()


def test_gradients():
    x, y, p = (rows.requires_grad_() for rows in random_rows(2, 1, 1, num_samples=4))
    for function in (
        lambda *rows: conditional_cs_divergence(*rows),
        lambda x, y, _: cs_qmi(x, y),
        lambda x, y, _: normalized_cs_qmi(x, y),
    ):
        assert gradcheck(function, (p, y, x))


def test_half_precision_is_computed_in_float32():
    x, y, p = (rows.bfloat16() for rows in random_rows(2, 1, 1))
    value = conditional_cs_divergence(p, y, x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, conditional_cs_divergence(p.float(), y.float(), x.float()))


def test_bad_input():
    x, y = torch.zeros(4, 2), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"target must have the shape of prediction, \(4, 1\), got \(4,\)"):
        conditional_cs_divergence(y, y.squeeze(1), x)
    with pytest.raises(ValueError, match=r"prediction, target, input must have one number of rows.*got \[4, 4, 3\]"):
        conditional_cs_divergence(y, y, x[:3])
    with pytest.raises(ValueError, match=r"x, y must have one number of rows, 1 or more, got \[0, 0\]"):
        cs_qmi(x[:0], y[:0])
    with pytest.raises(ValueError, match=r"y must hold real numbers, got torch.int64"):
        normalized_cs_qmi(x, torch.arange(4))
    with pytest.raises(ValueError, match=r"sigma must be positive and finite, got 0"):
        cs_qmi(x, y, sigma=0.0)
