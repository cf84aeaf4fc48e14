import math

import pytest
import torch
from torch.nn import functional

from leyden.losses import CastLoss, cast_loss

STUDENT = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]], dtype=torch.float64)
TEACHER = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 1])


def test_by_hand():
    # KL: q = (1/4, 3/4) against (1/2, 1/2), and the other way round; cross entropy: log 2 and log 4/3
    divergence = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)]
    task = [math.log(2.0), math.log(4.0 / 3.0)]
    each = [d / 4 + 3 * t / 4 for d, t in zip(divergence, task, strict=True)]
    assert cast_loss(STUDENT, TEACHER, TARGET, eta=0.25, reduction="none").tolist() == pytest.approx(each)
    assert cast_loss(STUDENT, TEACHER, TARGET, eta=0.25).item() == pytest.approx(sum(each) / 2)
    assert CastLoss(eta=0.25, reduction="sum")(STUDENT, TEACHER, TARGET).item() == pytest.approx(sum(each))


def test_limits():
    plain = functional.cross_entropy(STUDENT, TARGET)
    torch.testing.assert_close(cast_loss(STUDENT, TEACHER, TARGET, eta=0.0), plain)
    assert cast_loss(STUDENT, STUDENT, TARGET, eta=1.0).item() == pytest.approx(0.0, abs=1e-12)
    soft = functional.one_hot(TARGET, 2).double()
    torch.testing.assert_close(cast_loss(STUDENT, TEACHER, soft), cast_loss(STUDENT, TEACHER, TARGET))
    teacher = TEACHER.clone().requires_grad_()
    student = STUDENT.clone().requires_grad_()
    cast_loss(student, teacher, TARGET).backward()
    assert teacher.grad is None
    half = cast_loss(STUDENT.bfloat16(), TEACHER.bfloat16(), TARGET)
    assert half.dtype == torch.float32


def test_gradient():
    student = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: cast_loss(x, teacher, torch.tensor([0, 1, 3])), (student,))


def test_bad_input_is_refused():
    with pytest.raises(
        ValueError, match=r"teacher_logits must have the shape of student_logits, \(2, 2\), got \(2, 3\)"
    ):
        cast_loss(STUDENT, torch.zeros(2, 3), TARGET)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.5"):
        cast_loss(STUDENT, TEACHER, TARGET, eta=1.5)
    with pytest.raises(ValueError, match="reduction"):
        cast_loss(STUDENT, TEACHER, TARGET, reduction="average")
