"""Numbers of the authors' code: github.com/shengliu66/ELR at 934af53, class elr_loss of ELR/model/loss.py, run in
float64 with beta 0.7 for the two batches below, one after the other."""

import pytest
import torch
from torch.nn import functional

from leyden.losses import ELRLoss, elr_loss, elr_update

FIRST = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.2], [12.0, 0.0, -3.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
SECOND = torch.tensor([[1.0, 0.5, -0.5], [0.4, -0.6, 0.1], [-1.0, 11.0, 0.0], [0.2, -0.3, 2.5]], dtype=torch.float64)
TARGETS = torch.tensor(
    [
        [
            [0.2356791103767828, 0.011733771981206238, 0.052587117642011016],
            [0.09467934999384432, 0.12780375448476178, 0.07751689552139399],
            [0.29994000599940007, 2.999700029997001e-05, 2.999700029997001e-05],
            [0.14635666534811054, 0.14635666534811054, 0.007286669303778964],
        ],
        [
            [0.32894019344360187, 0.10766332851407183, 0.07339647804232638],
            [0.20854345064526378, 0.14180006576632956, 0.15965648358840678],
            [0.20998800119988, 0.29996100389961006, 5.099490050994902e-05],
            [0.12835480621587048, 0.1181619276842251, 0.2634832660999045],
        ],
    ],
    dtype=torch.float64,
)
LOSSES = (-0.20943701712182353, -0.2722133612766855)
GRADIENT_TIMES_3 = torch.tensor(  # of the second loss
    [
        [-0.055239902305349774, 0.03742933238294622, 0.017810569922403555],
        [-0.012495722704525276, 0.006049439304654079, 0.006446283399871215],
        [0.0, 0.0, 0.0],  # saturated: the clamp lets no gradient through
        [0.009926894238193873, 0.00655071556694905, -0.016477609805142904],
    ],
    dtype=torch.float64,
)


def test_targets_of_the_authors_code():
    targets = elr_update(torch.zeros_like(FIRST), FIRST)
    torch.testing.assert_close(targets, TARGETS[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(elr_update(targets, SECOND, momentum=0.7), TARGETS[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("number", "logits"), [(0, FIRST), (1, SECOND)])
def test_value_of_the_authors_code_and_twin(number, logits):
    assert elr_loss(logits, TARGETS[number]).item() == pytest.approx(LOSSES[number], rel=1e-12)
    assert ELRLoss()(logits, TARGETS[number]).item() == pytest.approx(LOSSES[number], rel=1e-12)


def test_gradient_of_the_authors_code():
    logits, memory = SECOND.clone().requires_grad_(), TARGETS[1].clone().requires_grad_()
    (3.0 * elr_loss(logits, memory)).backward()
    torch.testing.assert_close(logits.grad, GRADIENT_TIMES_3, rtol=0, atol=1e-14)
    assert memory.grad is None


def test_gradient_by_hand_beside_cross_entropy():
    rows, weight, labels = [0, 1, 3], 3.0, torch.tensor([0, 1, 2])
    logits, targets = SECOND[rows].clone().requires_grad_(), TARGETS[1][rows]
    (functional.cross_entropy(logits, labels) + weight * elr_loss(logits, targets)).backward()
    p = SECOND[rows].softmax(-1)
    agreement = (targets * p).sum(-1, keepdim=True)
    ours = -weight / 3 * (targets * p - p * agreement) / (1.0 - agreement)
    torch.testing.assert_close(logits.grad, (p - functional.one_hot(labels)) / 3 + ours, rtol=0, atol=1e-14)


def test_gradcheck():
    logits = SECOND[[0, 1, 3]].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: elr_loss(x, TARGETS[1][[0, 1, 3]], reduction="none"), (logits,))


def test_rows_sum_to_one_minus_a_power_of_the_momentum():
    targets = torch.zeros_like(FIRST)
    for updates in range(1, 5):
        targets = elr_update(targets, FIRST if updates % 2 else SECOND, momentum=0.9)
        torch.testing.assert_close(targets.sum(-1), torch.full((4,), 1.0 - 0.9**updates, dtype=torch.float64))


def test_without_momentum_the_row_is_the_prediction():
    p = torch.tensor([[0.25, 0.75], [1e-6, 1.0 - 1e-6]], dtype=torch.float64)
    updated = elr_update(torch.full_like(p, 0.4), p.log(), momentum=0.0)
    torch.testing.assert_close(updated, torch.tensor([[0.25, 0.75], [1e-4, 1.0 - 1e-4]], dtype=torch.float64))


def test_update_is_detached_and_leaves_its_input():
    memory, logits = TARGETS[0].clone(), SECOND.clone().requires_grad_()
    assert not elr_update(memory, logits).requires_grad
    assert torch.equal(memory, TARGETS[0])


def test_full_agreement_stays_finite():
    # by hand: 1 - <t, p> = 1 - (1 - 1e-4)
    logits, memory = torch.tensor([[50.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert elr_loss(logits, memory).item() == pytest.approx(-9.2103, abs=1e-2)
    assert elr_loss(logits, torch.zeros(1, 2)).item() == 0.0


def test_reductions_and_twin():
    rows = ELRLoss(reduction="none")(SECOND, TARGETS[1])
    assert rows.shape == (4,)
    assert elr_loss(SECOND, TARGETS[1], reduction="sum").item() == pytest.approx(4 * LOSSES[1])
    assert rows.mean().item() == pytest.approx(LOSSES[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, memory = SECOND.to(dtype), TARGETS[1].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, targets = elr_loss(logits, memory), elr_update(memory, logits)
    assert loss.dtype == targets.dtype == torch.float32
    assert loss.item() == pytest.approx(elr_loss(logits.double(), memory.double()).item(), rel=1e-5)
    assert elr_update(TARGETS[0], SECOND).dtype == torch.float64


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"memory must have the shape of logits, \(4, 3\), got \(4, 2\)"):
        elr_loss(FIRST, TARGETS[0][:, :2])
    with pytest.raises(ValueError, match="memory must have the shape"):
        elr_update(TARGETS[0][:1], FIRST)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.5"):
        elr_update(TARGETS[0], FIRST, momentum=1.5)
    with pytest.raises(ValueError, match="reduction must be"):
        ELRLoss(reduction="max")(FIRST, TARGETS[0])
