import math

import pytest
import torch
from scipy.special import rel_entr, softmax

from leyden.losses import MultiHeadDistillation, multi_head_distillation_loss


def logits(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # one head, two classes: KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4)
    student, member = [torch.zeros(1, 2)], [torch.tensor([[math.log(3.0), 0.0]])]
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert multi_head_distillation_loss(student, member).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_against_scipy(temperature):
    student, member = [logits(5, 3, seed=0), logits(5, 4, seed=1)], [logits(5, 3, seed=2), logits(5, 4, seed=3)]
    each = sum(
        rel_entr(softmax(m.numpy() / temperature, axis=1), softmax(s.numpy() / temperature, axis=1)).sum(1)
        for s, m in zip(student, member, strict=True)
    )
    expected = torch.from_numpy(temperature**2 * each / 2)
    found = multi_head_distillation_loss(student, member, temperature=temperature, reduction="none")
    torch.testing.assert_close(found, expected)
    twin = MultiHeadDistillation(temperature=temperature, reduction="sum")
    torch.testing.assert_close(twin(student, member), expected.sum())


def test_least_where_the_heads_follow_and_members_get_no_gradient():
    member = [logits(5, 3, seed=0).requires_grad_(), logits(5, 3, seed=1).requires_grad_()]
    student = [(x.detach() + 2.0).requires_grad_() for x in member]  # a constant changes no softmax
    loss = multi_head_distillation_loss(student, member)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert all(x.grad.abs().max() < 1e-12 for x in student)
    assert all(x.grad is None for x in member)


def test_large_logits_are_finite_in_half_precision():
    student = [torch.tensor([[6e4, 0.0]], dtype=torch.float16, requires_grad=True)]
    loss = multi_head_distillation_loss(student, [torch.tensor([[0.0, 6e4]], dtype=torch.float16)])
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(6e4, rel=1e-3)
    assert student[0].grad.tolist() == [[1.0, -1.0]]


def test_bad_input():
    one = [torch.zeros(2, 3)]
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        multi_head_distillation_loss(one, one, temperature=0.0)
    for student, member in (([], []), (one, one * 2), (one, [torch.zeros(2, 4)]), ([torch.zeros(3)], [torch.zeros(3)])):
        with pytest.raises(ValueError, match="student_logits and member_logits must be the same number"):
            multi_head_distillation_loss(student, member)
    with pytest.raises(ValueError, match="reduction must be"):
        multi_head_distillation_loss(one, one, reduction="average")
