"""OFA's loss against torch's cross entropy and a case by hand."""

import math

import pytest
import torch
from torch.nn import functional

from leyden.losses import OFA, ofa_loss

STUDENT = torch.sin(torch.arange(20, dtype=torch.float64)).view(4, 5) * 2
TEACHER = torch.cos(torch.arange(20, dtype=torch.float64) * 1.7).view(4, 5) * 3
TARGET = torch.tensor([0, 3, 1, 4])


def test_eps_one_is_cross_entropy_to_the_teacher():
    wanted = functional.cross_entropy(STUDENT / 2.0, (TEACHER / 2.0).softmax(1)).item()
    for target in (TARGET, TARGET.flip(0)):
        assert ofa_loss(STUDENT, TEACHER, target, temperature=2.0).item() == pytest.approx(wanted)


def test_by_hand():
    # p = (1/4, 3/4), q = (2/5, 3/5), class 1 is true, eps 2: 0.4^2 log 4 + (1.6^2 - 1) log(4/3)
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(2.0), math.log(3.0)]])
    wanted = 0.16 * math.log(4.0) + 1.56 * math.log(4.0 / 3.0)
    assert OFA(eps=2.0)(student, teacher, torch.tensor([1])).item() == pytest.approx(wanted, rel=1e-6)


def test_weight_of_the_true_class():
    certain = 1e4 * functional.one_hot(TARGET, 5).double()
    wanted = (2.0**1.5 - 1.0) * functional.cross_entropy(STUDENT, TARGET).item()
    assert ofa_loss(STUDENT, certain, TARGET, eps=1.5).item() == pytest.approx(wanted)
    student = STUDENT.clone().requires_grad_()
    pulls = []
    for eps in (1.0, 1.2, 1.5):
        (gradient,) = torch.autograd.grad(ofa_loss(student, TEACHER, TARGET, eps=eps), student)
        pulls.append(-gradient.gather(1, TARGET[:, None]).sum().item())
    assert pulls == sorted(pulls)


def test_soft_targets_count_by_their_largest_class():
    soft = (0.6 * functional.one_hot(TARGET, 5) + 0.4 * functional.one_hot(TARGET.flip(0), 5)).double()
    assert ofa_loss(STUDENT, TEACHER, soft, eps=1.5).item() == ofa_loss(STUDENT, TEACHER, TARGET, eps=1.5).item()


def test_improbable_classes_have_finite_gradients():
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ofa_loss(student, -student.detach(), torch.tensor([0]), eps=1.5), student)
    assert torch.isfinite(gradient).all()


def test_errors():
    with pytest.raises(ValueError, match="eps must be positive, got 0"):
        OFA(eps=0.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        ofa_loss(STUDENT, TEACHER, TARGET, temperature=0.0)
    with pytest.raises(ValueError, match=r"target must be \[N\] or \[N, C\] as student_logits \(4, 5\), got \(3,\)"):
        ofa_loss(STUDENT, TEACHER, TARGET[:3])
    with pytest.raises(ValueError, match=r"must be \[N, C\], got \(4, 1, 5\): flatten what comes before C"):
        ofa_loss(STUDENT[:, None], TEACHER[:, None], TARGET)
