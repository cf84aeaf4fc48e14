"""Numbers of the authors' code: github.com/herandy/DEPICT at e75840d, functions.py, `train_depict`, run in float64."""

import pytest
import torch

from leyden.losses import DEPICTLoss, depict_loss, depict_targets

PROB = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.9, 0.05, 0.05]], dtype=torch.float64)
LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0], [-1.0, 2.0, 0.0], [3.0, 0.0, 1.0]], dtype=torch.float64)
OF_THE_CODE = [
    [0.7839185539164761, 0.1462705173488469, 0.06981092873467694],
    [0.5907928388746803, 0.33759590792838867, 0.07161125319693096],
    [0.039834454216244194, 0.5690636316606312, 0.39110191412312467],
    [0.9798900235663788, 0.006912804399057346, 0.013197172034564024],
]
OF_THE_PAPER = [  # the line beside it, which is a comment there
    [0.5779083317755983, 0.24963293493394934, 0.1724587332904524],
    [0.47526613833605313, 0.35926743103063363, 0.16546643063331312],
    [0.1263736414011319, 0.4776474677443587, 0.39597889085450944],
    [0.8333028651763074, 0.06999086184298714, 0.09670627298070567],
]


@pytest.mark.parametrize(
    ("knobs", "expected"), [({}, OF_THE_CODE), ({"power": 1.0, "frequency_power": 0.5}, OF_THE_PAPER)]
)
def test_targets(knobs, expected):
    prob = PROB.clone().requires_grad_()
    targets = depict_targets(prob, **knobs)
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert not targets.requires_grad
    torch.testing.assert_close(targets.sum(1), torch.ones(4, dtype=torch.float64))


def test_targets_follow_a_permutation_of_the_clusters():
    order = [2, 0, 1]
    torch.testing.assert_close(depict_targets(PROB[:, order]), depict_targets(PROB)[:, order])


def test_alike_frequencies_without_power_change_nothing():
    prob = torch.stack([PROB[0].roll(shift) for shift in range(3)])
    torch.testing.assert_close(depict_targets(prob, power=1.0), prob)
    assert depict_targets(prob)[0, 0] > prob[0, 0]  # and with power they do


def test_certain_predictions_are_kept_and_a_cluster_may_be_empty():
    certain = torch.eye(3)[[0, 0, 1]]
    assert torch.equal(depict_targets(certain), certain)


def test_tiny_probabilities_of_float32():
    prob = torch.tensor([[1e-30, 1.0], [1e-30, 1.0]])
    targets = depict_targets(prob)
    # q_1 / q_2 = (1e-30)^2 / 2e-30 : 1 / 2, although 1e-60 is no float32
    torch.testing.assert_close(targets[:, 0], torch.full((2,), 1e-30), rtol=1e-4, atol=0)


def test_loss_and_twin():
    targets = depict_targets(PROB)
    rows = torch.tensor([0.6934983392625811, 0.9938257145454991, 1.0715532104512675, 0.2169787768225858]).double()
    torch.testing.assert_close(depict_loss(LOGITS, targets, reduction="none"), rows, rtol=1e-7, atol=0)
    assert depict_loss(LOGITS, targets).item() == pytest.approx(0.7439640102704834, rel=1e-12)
    assert DEPICTLoss()(LOGITS, targets).item() == pytest.approx(0.7439640102704834, rel=1e-12)
    assert DEPICTLoss(reduction="sum")(LOGITS, targets).item() == pytest.approx(4 * 0.7439640102704834, rel=1e-12)


def test_cluster_numbers_are_certain_targets():
    number = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(depict_loss(LOGITS, number), depict_loss(LOGITS, torch.eye(3)[number]))


def test_gradient_reaches_the_noisy_logits_alone():
    logits, target = LOGITS.clone().requires_grad_(), PROB.clone().requires_grad_()
    depict_loss(logits, target).backward()
    torch.testing.assert_close(logits.grad, (LOGITS.softmax(-1) - PROB) / 4)
    assert target.grad is None


def test_bad_input():
    with pytest.raises(ValueError, match=r"prob must have shape \[M, K\], got \(4,\)"):
        depict_targets(PROB[:, 0])
    with pytest.raises(ValueError, match="power must be positive and frequency_power at least 0, got power=0.0 and"):
        depict_targets(PROB, power=0.0)
    with pytest.raises(ValueError, match=r"target must have shape \(4, 3\) or \(4,\), got \(4, 2\)"):
        depict_loss(LOGITS, PROB[:, :2])
    with pytest.raises(ValueError, match="reduction must be"):
        depict_loss(LOGITS, PROB, reduction="max")
