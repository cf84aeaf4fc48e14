"""Soft targets against numbers worked by hand, and their limits."""

import math

import pytest
import torch
from torch import Tensor

from leyden.losses import KD, dkd_loss, kd_loss


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_by_hand():
    # log 9 / 2 = log 3: the softened teacher has 3/4 and 1/4, the student 1/2 and 1/2
    loss = kd_loss(torch.zeros(1, 2), torch.tensor([[math.log(9.0), 0.0]]), temperature=2.0)
    assert loss.item() == pytest.approx(4.0 * kl(0.75, 0.5), rel=1e-6)


def test_reductions():
    student, teacher = logits(0, 5, 3), logits(1, 5, 3)
    each = kd_loss(student, teacher, reduction="none")
    assert each.shape == (5,)
    assert kd_loss(student, teacher).item() == pytest.approx(each.mean().item())
    assert KD(reduction="sum")(student, teacher).item() == pytest.approx(each.sum().item())
    tokens = kd_loss(logits(0, 2, 5, 3), logits(1, 2, 5, 3), reduction="none")
    assert tokens.shape == (2, 5)
    assert tokens[1, 3].item() == pytest.approx(kd_loss(logits(0, 2, 5, 3)[1, 3:4], logits(1, 2, 5, 3)[1, 3:4]).item())


def test_a_shift_of_either_side_changes_nothing():
    student, teacher = logits(0, 5, 3).requires_grad_(), logits(1, 5, 3)
    shift = torch.arange(5.0)[:, None]
    assert kd_loss(student + shift, teacher - 2 * shift).item() == pytest.approx(kd_loss(student, teacher).item())
    (gradient,) = torch.autograd.grad(kd_loss(student, student.detach() + 3.0), student)
    assert gradient.abs().max() < 1e-15


def test_high_temperature_compares_centred_logits():
    student, teacher = logits(0, 4, 6).requires_grad_(), logits(1, 4, 6)
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, temperature=1e4, reduction="sum"), student)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / 6, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_is_decoupled_distillation_with_the_teachers_weight(temperature):
    """KL = TCKD + (1 - q_y) NCKD (Zhao et al., equation 4): two implementations that share no line."""
    student, teacher, target = logits(0, 5, 4), logits(1, 5, 4), torch.tensor([0, 1, 2, 3, 3])
    rest = 1.0 - (teacher / temperature).softmax(1).gather(1, target[:, None])[:, 0]
    parts = [
        dkd_loss(student, teacher, target, alpha=alpha, beta=beta, temperature=temperature, reduction="none")
        for alpha, beta in ((1.0, 0.0), (0.0, 1.0))
    ]
    torch.testing.assert_close(
        parts[0] + rest * parts[1], kd_loss(student, teacher, temperature=temperature, reduction="none")
    )


def test_half_precision_is_computed_in_float32():
    student, teacher = logits(0, 5, 3).bfloat16(), logits(1, 5, 3).bfloat16()
    loss = kd_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(kd_loss(student.double(), teacher.double()).item(), rel=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        KD(temperature=0.0)
    with pytest.raises(ValueError, match=r"must have the same shape \[N, ..., C\], got \(2, 3\) and \(2, 4\)"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="reduction must be"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction="batchmean")
