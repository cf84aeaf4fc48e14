"""Numbers of the authors' code: github.com/AngusDujw/SAF at 6e85600, SAF_train.py line 736, run in float64."""

import pytest
import torch

from leyden.losses import TrajectoryLoss, trajectory_loss

PAST = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.2], [12.0, 0.0, -3.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
NOW = torch.tensor([[1.0, 0.5, -0.5], [0.4, -0.6, 0.1], [-1.0, 11.0, 0.0], [0.2, -0.3, 2.5]], dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(5.0, 13.045258147729019), (1.0, 3.5710357204684855)])
def test_value_of_the_authors_code_and_twin(temperature, expected):
    assert trajectory_loss(NOW, PAST, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)
    assert TrajectoryLoss(temperature=temperature)(NOW, PAST).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_authors_code():
    logits, past = NOW.clone().requires_grad_(), PAST.clone().requires_grad_()
    trajectory_loss(logits, past).backward()
    expected = torch.tensor(
        [
            [-0.07346709491148634, 0.12789285744246834, -0.05442576253098225],
            [0.03926959995112499, -0.06838461064597645, 0.029115010694851524],
            [-1.0016274611376184, 0.9409205353391611, 0.06070692579845729],
            [-0.1321466858244817, -0.16624133991966134, 0.29838802574414325],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-13)
    assert past.grad is None


def test_defaults_and_reductions_of_the_twin():
    rows = trajectory_loss(NOW, PAST, reduction="none")
    assert rows.shape == (4,)
    assert torch.equal(TrajectoryLoss(reduction="none")(NOW, PAST), rows)
    assert TrajectoryLoss(reduction="sum")(NOW, PAST).item() == pytest.approx(4 * 13.045258147729019)
    assert torch.equal(rows.mean(), trajectory_loss(NOW, PAST, temperature=5.0))


def test_gradcheck():
    logits = NOW.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: trajectory_loss(x, PAST, temperature=2.0, reduction="none"), (logits,))


def test_same_outputs_cost_nothing():
    logits = PAST.clone().requires_grad_()
    loss = trajectory_loss(logits, PAST)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() < 1e-15


def test_a_constant_per_row_changes_nothing():
    shift = torch.tensor([[3.0], [-2.0], [0.5], [10.0]], dtype=torch.float64)
    expected = trajectory_loss(NOW, PAST, reduction="none")
    torch.testing.assert_close(trajectory_loss(NOW + shift, PAST, reduction="none"), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(trajectory_loss(NOW, PAST - shift, reduction="none"), expected, rtol=1e-12, atol=0)


def test_high_temperature_compares_centred_logits():
    gap = NOW - PAST
    expected = 0.5 * (gap - gap.mean(-1, keepdim=True)).square().mean()
    assert trajectory_loss(NOW, PAST, temperature=1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_confident_outputs_stay_finite():
    # the authors' softmax(...).log() gives infinity here; by hand: T^2 * 200 / T
    now, past = torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]])
    assert trajectory_loss(now, past, temperature=1.0).item() == pytest.approx(200.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    now, past = NOW.to(dtype), PAST.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = trajectory_loss(now, past)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(trajectory_loss(now.double(), past.double()).item(), rel=1e-5)
    assert trajectory_loss(NOW, PAST).dtype == torch.float64


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"past_logits must have the shape of logits, \(4, 3\), got \(2, 3\)"):
        trajectory_loss(NOW, PAST[:2])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        trajectory_loss(NOW, PAST, temperature=0.0)
    with pytest.raises(ValueError, match="reduction must be"):
        trajectory_loss(NOW, PAST, reduction="batchmean")
