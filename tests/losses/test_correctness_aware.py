import pytest
import torch
from torch.nn import functional

from leyden.losses import CorrectnessAware, correctness_aware_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.4, -1.0], [0.0, 3.0, 1.0], [1.0, 1.5, 1.4]], dtype=torch.float64)
CALIBRATED = LOGITS / torch.tensor([[1.0], [2.0], [0.5], [1.5]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 1, 1])  # the second one is predicted wrongly


@pytest.mark.parametrize(("balanced", "expected"), [(True, 0.1685438983388836), (False, 0.16769233059140815)])
def test_equals_the_authors_code(balanced, expected):
    """Numbers of the loss in temperature_scaling_CA.py of liuyvchi/Correctness-aware-calibration (d843d4b)."""
    assert correctness_aware_loss(CALIBRATED, LOGITS, TARGET, balanced=balanced).item() == pytest.approx(expected)
    assert CorrectnessAware(balanced=balanced)(CALIBRATED, LOGITS, TARGET).item() == pytest.approx(expected)
    soft = functional.one_hot(TARGET, 3).double()
    assert correctness_aware_loss(CALIBRATED, LOGITS, soft, balanced=balanced).item() == pytest.approx(expected)


def test_both_groups_have_half_of_the_weight():
    confidence = CALIBRATED.softmax(-1).amax(-1)
    right = (confidence[[0, 2, 3]] - 1.0).square().mean()
    wrong = confidence[1].square()
    torch.testing.assert_close(correctness_aware_loss(CALIBRATED, LOGITS, TARGET), (right + wrong) / 2)


def test_one_group_alone_has_the_plain_mean():
    confidence = CALIBRATED.softmax(-1).amax(-1)
    all_right = correctness_aware_loss(CALIBRATED, LOGITS, LOGITS.argmax(-1))
    torch.testing.assert_close(all_right, (confidence - 1.0).square().mean())
    all_wrong = correctness_aware_loss(CALIBRATED, LOGITS, LOGITS.argmin(-1))
    torch.testing.assert_close(all_wrong, confidence.square().mean())
    assert all_wrong > 1 / 9  # a wrong one costs at least 1 / C^2


def test_gradient_sharpens_what_is_right_and_flattens_what_is_wrong():
    temperature = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    logits = LOGITS.clone().requires_grad_()
    correctness_aware_loss(LOGITS / temperature, logits, TARGET).backward()
    assert (temperature.grad.squeeze() > 0.0).tolist() == [True, False, True, True]
    assert logits.grad is None


def test_half_precision():
    loss = correctness_aware_loss(CALIBRATED.bfloat16(), LOGITS.bfloat16(), TARGET)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.1685, rel=2e-2)


def test_bad_input():
    with pytest.raises(ValueError, match=r"must have the same shape \[N, C\], N at least 1, got \(3, 3\) and \(4, 3\)"):
        correctness_aware_loss(CALIBRATED[:3], LOGITS, TARGET)
    with pytest.raises(ValueError, match=r"N at least 1, got \(0, 3\) and \(0, 3\)"):
        correctness_aware_loss(CALIBRATED[:0], LOGITS[:0], TARGET[:0])
    with pytest.raises(ValueError, match=r"target must be \[N\] or \[N, C\] for logits \(4, 3\), got \(3,\)"):
        correctness_aware_loss(CALIBRATED, LOGITS, TARGET[:3])
