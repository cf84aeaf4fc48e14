"""Sinkhorn's iterations against a plain float64 loop, scipy's assignment and torch's cdist."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from leyden.losses import SinkhornKD, sinkhorn_kd_loss

STUDENT = torch.sin(torch.arange(42, dtype=torch.float64) ** 1.1).view(6, 7) * 3
TEACHER = torch.cos(torch.arange(42, dtype=torch.float64) * 1.7).view(6, 7) * 3


def costs(temperature: float) -> np.ndarray:
    p, q = ((side / temperature).softmax(1).numpy() for side in (STUDENT, TEACHER))
    return np.abs(p[:, None] - q[None]).sum(-1)


def test_a_plain_loop():
    cost = costs(3.0)
    plan = np.exp(-cost / 0.2)
    for _ in range(7):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    wanted = (plan * cost).sum()
    settings = {"temperature": 3.0, "epsilon": 0.2, "iterations": 7}
    assert sinkhorn_kd_loss(STUDENT, TEACHER, reduction="sum", **settings).item() == pytest.approx(wanted)
    assert SinkhornKD(**settings)(STUDENT, TEACHER).item() == pytest.approx(wanted / 6)


def test_gradients():
    student, teacher = STUDENT[:4, :3].clone().requires_grad_(), TEACHER[:4, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(sinkhorn_kd_loss, (student, teacher))


def test_gradient_of_equal_rows_is_that_of_cdist():
    def loss(student):
        cost = torch.cdist((student / 2.0).softmax(1), (STUDENT / 2.0).softmax(1), p=1.0)
        plan = torch.exp(-cost / 0.1)
        for _ in range(20):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
        return (plan * cost).sum() / 6

    student = STUDENT.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(student), student)
    (gradient,) = torch.autograd.grad(sinkhorn_kd_loss(student, STUDENT), student)
    torch.testing.assert_close(gradient, wanted)
    assert sinkhorn_kd_loss(STUDENT, STUDENT).item() > 0.0  # the entropy of the plan


def test_limits_of_epsilon():
    cost = costs(2.0)
    assert sinkhorn_kd_loss(STUDENT, TEACHER, epsilon=1e6).item() == pytest.approx(cost.mean(), rel=1e-5)
    assigned = cost[linear_sum_assignment(cost)].mean()
    assert sinkhorn_kd_loss(STUDENT, TEACHER, epsilon=1e-3, iterations=2000).item() == pytest.approx(assigned, rel=1e-2)


def test_invariances():
    loss = sinkhorn_kd_loss(STUDENT, TEACHER).item()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert sinkhorn_kd_loss(STUDENT[order], TEACHER[order]).item() == pytest.approx(loss)
    assert sinkhorn_kd_loss(STUDENT + 2.0, TEACHER - 5.0).item() == pytest.approx(loss)
    alone = ((STUDENT[0] / 2).softmax(0) - (TEACHER[0] / 2).softmax(0)).abs().sum()
    assert sinkhorn_kd_loss(STUDENT[:1], TEACHER[:1]).item() == pytest.approx(alone.item())


def test_half_precision_is_computed_in_float32():
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    wanted = sinkhorn_kd_loss(student.double(), teacher.double(), epsilon=0.01).item()
    assert sinkhorn_kd_loss(student, teacher, epsilon=0.01).item() == pytest.approx(wanted, rel=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        SinkhornKD(reduction="none")
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        sinkhorn_kd_loss(STUDENT, TEACHER, epsilon=0.0)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        SinkhornKD(iterations=0)
    with pytest.raises(ValueError, match=r"must be \[N, C\], got \(2, 3, 7\)"):
        sinkhorn_kd_loss(STUDENT.view(2, 3, 7), TEACHER.view(2, 3, 7))
