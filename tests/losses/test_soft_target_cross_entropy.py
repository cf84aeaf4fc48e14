import pytest
import torch
from torch.nn import functional

from leyden.losses import SoftTargetCrossEntropy, soft_target_cross_entropy_loss


def wave(*shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).view(shape)


def test_numbers_of_the_authors_code():
    # SoftTargetCrossEntropy(0.1, 1.0) of DearCaat/MHIM-MIL at 9d0c91a, modules/mhim_modules/losses.py
    arguments = wave(2, 4, phase=0.0), wave(2, 4, phase=1.0)
    losses = soft_target_cross_entropy_loss(*arguments, reduction="none")
    assert losses.tolist() == pytest.approx([1.5314598126681365, 1.9326043001981161], abs=1e-12)
    assert SoftTargetCrossEntropy()(*arguments).item() == pytest.approx(1.7320320564331264, abs=1e-12)


def test_temperatures_and_gradient():
    student, teacher = wave(3, 4, phase=0.0).requires_grad_(), wave(3, 4, phase=1.0).requires_grad_()
    loss = soft_target_cross_entropy_loss(student, teacher, teacher_temperature=2.0, student_temperature=0.5)
    assert torch.allclose(loss, functional.cross_entropy(student / 0.5, (teacher / 2.0).softmax(-1)))
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_bad_arguments():
    with pytest.raises(ValueError, match="teacher_temperature must be positive, got 0.0"):
        soft_target_cross_entropy_loss(torch.ones(1, 2), torch.ones(1, 2), teacher_temperature=0.0)
    with pytest.raises(ValueError, match=r"teacher must have the shape of student, \(1, 2\), got \(2, 2\)"):
        soft_target_cross_entropy_loss(torch.ones(1, 2), torch.ones(2, 2))
