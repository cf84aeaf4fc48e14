import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from leyden.losses import JensenShannonDivergence, jensen_shannon_divergence

A, B = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)) * 3.0


def test_against_scipy():
    expected = jensenshannon(softmax(A.double().numpy(), 1), softmax(B.double().numpy(), 1), axis=1) ** 2
    torch.testing.assert_close(jensen_shannon_divergence(A, B, reduction="none").double(), torch.tensor(expected))
    assert jensen_shannon_divergence(A, B).item() == pytest.approx(expected.mean())
    assert JensenShannonDivergence(reduction="sum")(A, B).item() == pytest.approx(expected.sum())


def test_by_hand():
    # p = (1/2, 1/2) and q = (1/4, 3/4): m = (3/8, 5/8)
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    p_term = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    q_term = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    assert jensen_shannon_divergence(p, q).item() == pytest.approx((p_term + q_term) / 2, rel=1e-5)


def test_symmetric_bounded_and_zero_where_they_agree():
    there, back = (jensen_shannon_divergence(*pair, reduction="none") for pair in ((A, B), (B, A)))
    torch.testing.assert_close(there, back)
    same = jensen_shannon_divergence(A, A + 7.0, reduction="none")  # a softmax does not know a constant
    assert (same >= 0.0).all()
    assert same.max() < 1e-6
    apart = jensen_shannon_divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert apart.item() == pytest.approx(math.log(2.0), rel=1e-6)


def test_classes_without_probability_and_half_precision():
    masked = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    expected = jensen_shannon_divergence(masked[:, :2], torch.tensor([[2.0, 0.0]])).item()
    divergence = jensen_shannon_divergence(masked, torch.tensor([[2.0, 0.0, -torch.inf]]))
    divergence.backward()
    assert divergence.item() == pytest.approx(expected)
    assert masked.grad.isfinite().all()
    half = jensen_shannon_divergence(A.bfloat16(), B.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, jensen_shannon_divergence(A.bfloat16().float(), B.bfloat16().float()))


def test_gradients():
    pair = (A.double().requires_grad_(), B.double().requires_grad_())
    assert torch.autograd.gradcheck(jensen_shannon_divergence, pair)


def test_bad_input():
    with pytest.raises(ValueError, match=r"logits_a and logits_b must both be \[N, C\], got \(6, 5\) and \(6, 4\)"):
        jensen_shannon_divergence(A, B[:, :4])
    with pytest.raises(ValueError, match=r"got \(5,\) and \(5,\)"):
        jensen_shannon_divergence(A[0], B[0])
    with pytest.raises(ValueError, match="reduction must be"):
        jensen_shannon_divergence(A, B, reduction="batchmean")
