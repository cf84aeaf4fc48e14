"""Losses of trajectory matching, by hand."""

import math

import pytest
import torch

from leyden.losses import SoftLabelLoss, TrajectoryMatchingLoss, soft_label_loss, trajectory_matching_loss

START, TARGET = torch.tensor([0.0, 3.0]), torch.tensor([4.0, 0.0])


def test_match_by_hand():
    # 5 away at the start, and sqrt(10) in the end
    final = torch.tensor([3.0, 3.0])
    assert trajectory_matching_loss(final, START, TARGET).item() == pytest.approx(10 / 25)
    parts = [{"a": p[:1], "b": p[1:].view(1, 1)} for p in (final, START, TARGET)]
    assert TrajectoryMatchingLoss()(*parts).item() == pytest.approx(10 / 25)


def test_match_identities():
    assert trajectory_matching_loss(START, START, TARGET) == 1.0
    assert trajectory_matching_loss(TARGET, START, TARGET) == 0.0
    points = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = -3.0 * points + torch.arange(5.0)  # a common scale and shift
    torch.testing.assert_close(trajectory_matching_loss(*moved), trajectory_matching_loss(*points))


def test_only_the_end_of_the_student_gets_a_gradient():
    final, start, target = (p.clone().requires_grad_() for p in (torch.tensor([3.0, 3.0]), START, TARGET))
    trajectory_matching_loss(final, start, target).backward()
    assert final.grad.tolist() == pytest.approx([-2 / 25, 6 / 25])
    assert start.grad is None
    assert target.grad is None


def test_soft_labels_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]])  # 1/4 and 3/4
    labels = torch.tensor([[math.log(2.0), 0.0]], requires_grad=True)  # 2/3 and 1/3
    value = 2 / 3 * math.log(4) + 1 / 3 * math.log(4 / 3)
    loss = soft_label_loss(logits, labels)
    assert loss.item() == pytest.approx(value)
    assert SoftLabelLoss(reduction="sum")(logits.repeat(3, 1), labels.repeat(3, 1)).item() == pytest.approx(3 * value)
    # p (1 - p) times the difference of the two costs, log 4 - log 4/3
    loss.backward()
    assert labels.grad[0].tolist() == pytest.approx([2 / 9 * math.log(3), -2 / 9 * math.log(3)])


def test_a_constant_on_all_labels_of_a_row_changes_nothing():
    logits, labels = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    shifted = labels + torch.tensor([[1.0], [-2.0], [0.0], [5.0]])
    torch.testing.assert_close(
        soft_label_loss(logits, shifted, reduction="none"), soft_label_loss(logits, labels, reduction="none")
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trajectory_matching_loss({"a": START}, START, TARGET), "must all be tensors, or all mappings"),
        (lambda: trajectory_matching_loss({"a": START}, {"a": START}, {"b": START}), "the same names and shapes"),
        (lambda: trajectory_matching_loss(START, START, TARGET[:1]), "the same names and shapes"),
        (lambda: soft_label_loss(torch.zeros(2, 3), torch.zeros(2)), r"the shape of logits, \(2, 3\), got \(2,\)"),
        (lambda: soft_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction="x"), "reduction"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
