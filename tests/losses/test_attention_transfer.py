"""Attention maps against another library's number and a small case by hand."""

import pytest
import torch

from leyden.losses import AttentionTransfer, attention_transfer_loss


def test_value_of_another_library():
    # ATLoss(mode="code") of torchdistill 1.1.5, which follows the authors' code, printed 0.017677944134924718
    student = torch.sin(torch.arange(48, dtype=torch.float64)).view(2, 3, 2, 4)
    teacher = torch.cos(torch.arange(32, dtype=torch.float64) * 1.7).view(2, 2, 2, 4)
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(0.017677944134924718)


def test_by_hand():
    # energies (over 2 and 1 channels) 3^2 + 1 = 10 against 0, and 4 against 4; unit norm: (1, 0), (0.5, 0.5)^0.5
    student = torch.tensor([[[[3.0, 0.0]], [[-1.0, 0.0]]]])
    teacher = torch.tensor([[[[-2.0, 2.0]]]])
    half = 0.5**0.5
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(((1 - half) ** 2 + half**2) / 2)


def test_the_larger_map_is_averaged():
    small, large = torch.rand(2, 3, 2, 2), torch.rand(2, 5, 4, 6)
    averaged = large.view(2, 5, 2, 2, 2, 3).mean((3, 5))
    wanted = attention_transfer_loss(small, averaged).item()
    assert attention_transfer_loss(small, large).item() == pytest.approx(wanted)
    assert AttentionTransfer()(large, small).item() == pytest.approx(wanted)


def test_scale_does_not_matter():
    student, teacher = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    loss = attention_transfer_loss(student, teacher, power=1.5).item()
    assert attention_transfer_loss(7.0 * student, -0.1 * teacher, power=1.5).item() == pytest.approx(loss, rel=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"must be \[N, C, H, W\] of the same N, got \(2, 3\) and \(2, 3, 4, 4\)"):
        attention_transfer_loss(torch.rand(2, 3), torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="power must be positive, got 0"):
        attention_transfer_loss(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), power=0.0)
