"""Correlations of predictions against numpy's and those of torchdistill."""

import numpy as np
import pytest
import torch

from leyden.losses import DIST, dist_loss

NUMBERS = torch.arange(20, dtype=torch.float64)
STUDENT, TEACHER = torch.sin(NUMBERS).view(4, 5) * 2, torch.cos(NUMBERS * 1.7).view(4, 5) * 3


def test_value_of_another_library():
    # DISTLoss of torchdistill 1.1.5, which follows the authors' code, printed 11.445595726372312
    loss = dist_loss(STUDENT, TEACHER, beta=1.0, gamma=2.0, temperature=2.0)
    assert loss.item() == pytest.approx(11.445595726372312, rel=1e-8)


def test_numpys_correlations():
    p, q = STUDENT.softmax(1).numpy(), TEACHER.softmax(1).numpy()
    samples = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert DIST(gamma=0.0)(STUDENT, TEACHER).item() == pytest.approx(1.0 - samples, rel=1e-6)
    assert DIST(beta=0.0)(STUDENT, TEACHER).item() == pytest.approx(1.0 - classes, rel=1e-6)


def test_invariances():
    assert dist_loss(TEACHER, TEACHER).item() == pytest.approx(0.0, abs=1e-6)
    assert dist_loss(STUDENT + 5.0, TEACHER - 1.0).item() == pytest.approx(dist_loss(STUDENT, TEACHER).item())


def test_equal_outputs_have_a_finite_gradient():
    student = torch.zeros(3, 4, requires_grad=True)
    loss = dist_loss(student, torch.eye(3, 4))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()


def test_autocast_does_not_reach_the_products():
    student, teacher = STUDENT.float(), TEACHER.float()
    wanted = dist_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dist_loss(student, teacher), wanted)


def test_errors():
    with pytest.raises(ValueError, match="same shape"):
        dist_loss(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="temperature must be positive"):
        DIST(temperature=0.0)
    with pytest.raises(ValueError, match=r"must be \[N, C\], got \(2, 2, 5\): flatten what comes before C"):
        dist_loss(STUDENT.view(2, 2, 5), TEACHER.view(2, 2, 5))
