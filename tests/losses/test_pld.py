"""Plackett-Luce distillation against a loop over the ranking."""

import math

import pytest
import torch
from torch.nn import functional

from leyden.losses import PLD, pld_loss

STUDENT = torch.sin(torch.arange(20, dtype=torch.float64)).view(4, 5) * 2
TEACHER = torch.cos(torch.arange(20, dtype=torch.float64) * 1.7).view(4, 5) * 3
TARGET = torch.tensor([0, 3, 1, 4])


def ranked(s: list[float], t: list[float], true: int, temperature: float) -> float:
    q = [math.exp(x / temperature) for x in t]
    ranking = [true, *sorted((c for c in range(len(t)) if c != true), key=lambda c: -t[c])]
    total = 0.0
    for k, c in enumerate(ranking):
        rest = math.log(sum(math.exp(s[d]) for d in ranking[k:]))
        total += q[c] / sum(q) * (rest - s[c])
    return total


def test_rank_by_rank():
    wanted = [ranked(s, t, int(y), 2.0) for s, t, y in zip(STUDENT.tolist(), TEACHER.tolist(), TARGET, strict=True)]
    losses = pld_loss(STUDENT, TEACHER, TARGET, temperature=2.0, reduction="none")
    assert losses.tolist() == pytest.approx(wanted)
    assert PLD(temperature=2.0)(STUDENT, TEACHER, TARGET).item() == pytest.approx(sum(wanted) / 4)


def test_a_certain_teacher_gives_cross_entropy():
    certain = 1e3 * functional.one_hot(TARGET, 5).double()
    wanted = functional.cross_entropy(STUDENT, TARGET).item()
    assert pld_loss(STUDENT, certain, TARGET).item() == pytest.approx(wanted)


def test_two_classes_give_weighted_cross_entropy():
    target = torch.tensor([0, 1, 1, 0])
    each = functional.cross_entropy(STUDENT[:, :2], target, reduction="none")
    believed = TEACHER[:, :2].softmax(1).gather(1, target[:, None])[:, 0]
    losses = pld_loss(STUDENT[:, :2], TEACHER[:, :2], target, reduction="none")
    torch.testing.assert_close(losses, believed * each)


def test_shifts_change_nothing_and_the_gradient_sums_to_zero():
    student = STUDENT.clone().requires_grad_()
    loss = pld_loss(student + 7.0, TEACHER - 3.0, TARGET)
    assert loss.item() == pytest.approx(pld_loss(STUDENT, TEACHER, TARGET).item())
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(4, dtype=torch.float64))


def test_is_convex():
    other = STUDENT.flip(0) * 3
    ends = [pld_loss(end, TEACHER, TARGET, reduction="none") for end in (STUDENT, other)]
    middle = pld_loss((STUDENT + other) / 2, TEACHER, TARGET, reduction="none")
    assert (middle <= (ends[0] + ends[1]) / 2).all()


def test_half_precision_keeps_the_tail():
    student = torch.linspace(8.0, -8.0, 200)[None].bfloat16()
    teacher = student.double()
    loss = pld_loss(student, teacher, torch.tensor([5]))
    assert loss.item() == pytest.approx(pld_loss(student.double(), teacher, torch.tensor([5])).item(), rel=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"target must be class numbers, int64 \(4,\), got torch.float64 \(4, 5\)"):
        pld_loss(STUDENT, TEACHER, TEACHER.softmax(1))
    with pytest.raises(ValueError, match="temperature must be positive"):
        PLD(temperature=0.0)
    with pytest.raises(ValueError, match=r"must be \[N, C\], got \(2, 2, 5\): flatten what comes before C"):
        pld_loss(STUDENT.view(2, 2, 5), TEACHER.view(2, 2, 5), TARGET.view(2, 2))
