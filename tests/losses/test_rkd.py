"""Relations between samples against another library's number and triangles by hand."""

import math

import pytest
import torch

from leyden.losses import RKD, rkd_loss


def test_values_of_another_library():
    # RKDLoss of torchdistill 1.1.5, which follows the authors' code, printed these
    numbers = torch.arange(20, dtype=torch.float64)
    student, teacher = torch.sin(numbers).view(4, 5) * 2, torch.cos(numbers * 1.7).view(4, 5) * 3
    assert rkd_loss(student, teacher).item() == pytest.approx(0.23073637471584246)
    assert RKD(angle_weight=0.0)(student, teacher).item() == pytest.approx(0.07712345998084741)


def test_triangles():
    # Distances 3, 4, 5 (mean 4) against three of 1 (mean 1): differences 1/4, 0, 1/4, each twice in nine entries.
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    distance = 4 * 0.5 * 0.25**2 / 9
    assert rkd_loss(right, equal, angle_weight=0.0).item() == pytest.approx(distance, rel=1e-4)
    # Cosines 0, 3/5, 4/5 against 1/2, each twice in 27 entries; the others are 0 or 1 on both sides.
    angle = 2 * 0.5 * (0.5**2 + 0.1**2 + 0.3**2) / 27
    assert rkd_loss(right, equal, distance_weight=0.0, angle_weight=1.0).item() == pytest.approx(angle, rel=1e-5)


def test_similar_figures_are_alike():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert rkd_loss(x, 2.5 * x @ turn + 1.0).item() == pytest.approx(0.0, abs=1e-12)


def test_equal_samples_have_a_finite_gradient():
    student = torch.ones(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rkd_loss(student, torch.rand(3, 4)), student)
    assert torch.isfinite(gradient).all()


def test_autocast_does_not_reach_the_products():
    student, teacher = 3.0 + torch.rand(6, 4), torch.rand(6, 5)
    wanted = rkd_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rkd_loss(student, teacher), wanted)


def test_errors():
    with pytest.raises(ValueError, match=r"must be \[N, D\] of the same N, at least 2, got \(1, 3\) and \(1, 3\)"):
        rkd_loss(torch.rand(1, 3), torch.rand(1, 3))
