"""Decoupled distillation against a reference that goes class by class."""

import math

import pytest
import torch

from leyden.losses import DKD, dkd_loss


def by_class(student: list[float], teacher: list[float], true: int, *, alpha, beta, temperature) -> float:
    p, q = ([math.exp(x / temperature) for x in side] for side in (student, teacher))
    p, q = ([x / sum(side) for x in side] for side in (p, q))
    binary = q[true] * math.log(q[true] / p[true]) + (1 - q[true]) * math.log((1 - q[true]) / (1 - p[true]))
    others = sum(
        q[c] / (1 - q[true]) * math.log(q[c] / (1 - q[true]) / (p[c] / (1 - p[true])))
        for c in range(len(p))
        if c != true
    )
    return temperature**2 * (alpha * binary + beta * others)


def test_class_by_class():
    student = [[0.5, -1.0, 2.0, 0.1], [3.0, 0.2, -0.3, 1.0]]
    teacher = [[1.5, 0.0, 1.0, -2.0], [-1.0, 4.0, 0.5, 0.0]]
    settings = {"alpha": 1.5, "beta": 3.0, "temperature": 2.0}
    target = torch.tensor([2, 1])
    wanted = [by_class(s, t, int(y), **settings) for s, t, y in zip(student, teacher, target, strict=True)]
    student, teacher = torch.tensor(student).double(), torch.tensor(teacher).double()
    assert dkd_loss(student, teacher, target, reduction="none", **settings).tolist() == pytest.approx(wanted)
    assert DKD(**settings)(student, teacher, target).item() == pytest.approx(sum(wanted) / 2)


def test_a_certain_teacher_gives_finite_numbers():
    """1 - q_y is below the smallest float32 there: the authors' mask of -1000 keeps only what is above it."""
    student = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[400.0, 3.0, 2.0]])
    loss = dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()
    # of the others: KL of softmax(3, 2) to softmax(1, 2); of the true class: log(1 / p)
    a, p = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.e + math.e**2)
    others = a * math.log(a / (1 - a)) + (1 - a) * math.log((1 - a) / a)
    assert loss.item() == pytest.approx(-math.log(p) + 8.0 * others, rel=1e-5)


def test_two_classes_have_no_others():
    student, teacher = torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, 2.0]])
    assert dkd_loss(student, teacher, torch.tensor([1]), alpha=0.0).item() == pytest.approx(0.0, abs=1e-6)


def test_errors():
    pair = torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"target must be class numbers, int64 \(2,\), got torch.float32 \(2, 3\)"):
        dkd_loss(*pair, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got None"):
        DKD()(*pair, None)
    with pytest.raises(ValueError, match="temperature must be positive"):
        DKD(temperature=-1.0)
    with pytest.raises(ValueError, match=r"must be \[N, C\], got \(2, 4, 3\): flatten what comes before C"):
        dkd_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64))
