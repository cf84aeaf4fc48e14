import math

import pytest
import torch

from leyden.losses import ZLoss, z_loss

LOGITS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)  # Z = 2 and 4


def test_numbers_by_hand():
    squares = math.log(2) ** 2, math.log(4) ** 2
    assert z_loss(LOGITS, weight=0.5).item() == pytest.approx(0.25 * sum(squares))
    assert z_loss(LOGITS, weight=0.5, reduction="sum").item() == pytest.approx(0.5 * sum(squares))
    assert z_loss(LOGITS, reduction="none").tolist() == pytest.approx([1e-4 * square for square in squares])
    mask = torch.tensor([False, True])
    assert z_loss(LOGITS, mask, weight=1.0).item() == pytest.approx(squares[1])
    assert z_loss(LOGITS, mask, weight=1.0, reduction="none").tolist() == pytest.approx([0.0, squares[1]])
    assert ZLoss(weight=1.0, reduction="sum")(LOGITS, mask).item() == pytest.approx(squares[1])
    assert z_loss(LOGITS, torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_zero_for_log_probabilities_and_shift():
    logits = torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert z_loss(logits.log_softmax(-1)).item() == pytest.approx(0.0, abs=1e-30)
    lse = logits.logsumexp(-1)
    torch.testing.assert_close(z_loss(logits + 1.5, weight=2.0, reduction="none"), 2.0 * (lse + 1.5) ** 2)


def test_gradient():
    logits = LOGITS.clone().requires_grad_()
    z_loss(logits, weight=0.1, reduction="sum").backward()
    torch.testing.assert_close(logits.grad, 0.2 * LOGITS.logsumexp(-1, keepdim=True) * LOGITS.softmax(-1))


def test_half_precision_is_taken_in_float32():
    logits = torch.full((1, 256), 300.0, dtype=torch.bfloat16)
    assert z_loss(logits, weight=1.0).item() == pytest.approx((300.0 + math.log(256)) ** 2)


def test_bad_input():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        z_loss(LOGITS, weight=-1.0)
    with pytest.raises(ValueError, match=r"mask must have the shape \(2,\), got \(2, 2\)"):
        z_loss(LOGITS, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="reduction must be"):
        z_loss(LOGITS, reduction="average")
