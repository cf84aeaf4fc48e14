import math

import pytest
import torch
from torch.nn import functional

from leyden.losses import (
    MultiviewContrastive,
    SoftSymmetricCrossEntropy,
    multiview_contrastive_loss,
    nearest_prototype,
    soft_symmetric_cross_entropy_loss,
)


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_symmetric_cross_entropy_by_hand():
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = -0.5 * (math.log(0.25) + math.log(0.75))  # 0.8370
    backward = math.log(2.0)  # -0.25 log 0.5 - 0.75 log 0.5
    for alpha in (0.0, 0.25, 0.5, 1.0):
        value = soft_symmetric_cross_entropy_loss(student, teacher, alpha=alpha)
        assert value.item() == pytest.approx((1 - alpha) * forward + alpha * backward, rel=1e-6)


def test_symmetric_cross_entropy_identities():
    s, t = logits(0, 6, 4), logits(1, 6, 4)
    one_sided = soft_symmetric_cross_entropy_loss(s, t, alpha=0.0, reduction="none")
    torch.testing.assert_close(one_sided, functional.cross_entropy(s, t.softmax(-1), reduction="none"))
    torch.testing.assert_close(soft_symmetric_cross_entropy_loss(s, t), soft_symmetric_cross_entropy_loss(t, s))
    entropy = torch.distributions.Categorical(logits=s).entropy().mean()
    torch.testing.assert_close(soft_symmetric_cross_entropy_loss(s, s, alpha=0.3), entropy)
    torch.testing.assert_close(soft_symmetric_cross_entropy_loss(s + 5, t - 3), soft_symmetric_cross_entropy_loss(s, t))


def test_both_directions_have_a_gradient_and_the_teacher_has_none():
    s, t = logits(0, 6, 4).requires_grad_(), logits(1, 6, 4).requires_grad_()
    p, q = s.softmax(-1), t.softmax(-1).detach()
    expected = -(q * p.log() + p * q.log()).sum(-1).mean() / 2
    [gradient] = torch.autograd.grad(expected, s)
    soft_symmetric_cross_entropy_loss(s, t).backward()
    torch.testing.assert_close(s.grad, gradient)
    assert t.grad is None


def test_half_precision_with_a_probability_of_zero():
    s = torch.tensor([[0.0, -3e4]], dtype=torch.float16, requires_grad=True)
    value = soft_symmetric_cross_entropy_loss(s, torch.tensor([[0.0, -6e4]], dtype=torch.float16))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert s.grad.isfinite().all()


def test_contrast_of_orthogonal_samples():
    # two samples, two equal views: each anchor has one positive with cosine 1 and two negatives with cosine 0
    features = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 2, 2)
    expected = math.log(1 + 2 * math.exp(-1 / 0.5))
    assert multiview_contrastive_loss(features, temperature=0.5).item() == pytest.approx(expected)


def test_contrast_by_loops():
    features = logits(2, 4, 3, 5)
    rows = [(n, functional.normalize(features[n, v], dim=0)) for n in range(4) for v in range(3)]
    losses = []
    for i, (n, anchor) in enumerate(rows):
        others = [(m, math.exp(anchor @ row / 0.1)) for j, (m, row) in enumerate(rows) if j != i]
        total = sum(score for _, score in others)
        losses.append(-sum(math.log(score / total) for m, score in others if m == n) / 2)
    assert multiview_contrastive_loss(features).item() == pytest.approx(sum(losses) / 12)
    assert torch.equal(MultiviewContrastive()(features), multiview_contrastive_loss(features))


def test_contrast_knows_neither_order_nor_length():
    features = logits(3, 5, 3, 4)
    value = multiview_contrastive_loss(features)
    torch.testing.assert_close(multiview_contrastive_loss(features[[3, 1, 4, 0, 2]]), value)
    torch.testing.assert_close(multiview_contrastive_loss(features[:, [2, 0, 1]]), value)
    torch.testing.assert_close(multiview_contrastive_loss(features * (logits(4, 5, 3, 1).abs() + 0.1)), value)


def test_contrast_has_finite_gradients_for_one_sample():
    features = logits(5, 1, 3, 4).requires_grad_()
    multiview_contrastive_loss(features).backward()
    assert features.grad.isfinite().all()


def test_nearest_prototype_is_that_of_the_largest_cosine():
    prototypes = torch.tensor([[10.0, 0.0], [0.1, 0.1]])
    assert nearest_prototype(torch.tensor([[1.0, 0.1], [3.0, 2.0], [-1.0, 5.0]]), prototypes).tolist() == [0, 1, 1]


def test_twin():
    s, t = logits(0, 3, 4), logits(1, 3, 4)
    assert torch.equal(SoftSymmetricCrossEntropy(alpha=0.2)(s, t), soft_symmetric_cross_entropy_loss(s, t, alpha=0.2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: soft_symmetric_cross_entropy_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "teacher_logits must have"),
        (lambda: soft_symmetric_cross_entropy_loss(torch.zeros(2, 3), torch.zeros(2, 3), alpha=1.5), "alpha must lie"),
        (lambda: multiview_contrastive_loss(torch.zeros(2, 1, 3)), "2 views or more"),
        (lambda: multiview_contrastive_loss(torch.zeros(0, 2, 3)), "1 sample"),
        (lambda: multiview_contrastive_loss(torch.zeros(2, 2, 3), temperature=0.0), "temperature must be positive"),
        (lambda: nearest_prototype(torch.zeros(2, 3), torch.zeros(2, 4)), "the same D"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
