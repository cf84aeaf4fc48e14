import pytest
import torch
from torch.autograd import gradcheck

from leyden.core import rank
from leyden.losses import BinaryDiceLoss, DiceLoss, TverskyLoss, binary_dice_loss, dice_loss, tversky_loss

I = torch.arange(12, dtype=torch.float64)  # noqa: E741
LOGITS, TARGET = 2.0 * torch.sin(I).view(4, 3), torch.tensor([0, 2, 1, 1])
SCORES, POSITIVE = 2.0 * torch.sin(I), (I % 4 == 1).long()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, [0.7719874035837097, 0.8122494066203041, 0.5029401822777404, 0.7916300064922093]),
        (0.6, [0.6085577222189764, 0.5230908000393498, 0.37814444339115194, 0.4694359047359723]),
    ],
)
def test_values_of_the_authors_code(alpha, expected):
    """ShannonAI/dice_loss_for_NLP at d437bb9, ``DiceLoss(smooth=1.0, square_denominator=True, reduction="none")``."""
    assert dice_loss(LOGITS, TARGET, alpha=alpha, reduction="none").tolist() == pytest.approx(expected)
    assert dice_loss(LOGITS, TARGET, alpha=alpha).item() == pytest.approx(sum(expected) / 4)
    assert DiceLoss(alpha=alpha, reduction="sum")(LOGITS, TARGET).item() == pytest.approx(sum(expected))


@pytest.mark.parametrize(
    ("alpha", "square_denominator", "expected"),
    [
        (0.0, False, 0.5743203969766367),
        (0.0, True, 0.46910084064613367),
        (0.6, False, 0.6463958392623594),
        (0.6, True, 0.48718485955101876),
    ],
)
def test_binary_values_of_the_authors_code(alpha, square_denominator, expected):
    """The same code, with scores ``[12, 1]``."""
    knobs = {"alpha": alpha, "square_denominator": square_denominator}
    assert binary_dice_loss(SCORES, POSITIVE, **knobs).item() == pytest.approx(expected)
    assert BinaryDiceLoss(**knobs)(SCORES.view(3, 4), POSITIVE.view(3, 4)).item() == pytest.approx(expected)


def test_without_squares_by_hand():
    """Probabilities 1/4 and 3/4, the second class true: 1 - 1 / (1/4 + 1) and 1 - (3/2 + 1) / (3/4 + 1 + 1)."""
    logits = torch.tensor([[0.25, 0.75]]).log()
    value = dice_loss(logits, torch.tensor([1]), square_denominator=False)
    assert value.item() == pytest.approx(0.2 + 0.25 / 2.75)


def test_tversky_by_hand():
    """TP = 3/4, FP = 1/4 + 1/4, FN = 1/4."""
    scores = torch.tensor([0.75, 0.25, 0.25]).logit()
    target = torch.tensor([1, 0, 0])
    expected = 1.0 - (0.75 + 0.1) / (0.75 + 0.3 * 0.5 + 0.7 * 0.25 + 0.1)
    assert tversky_loss(scores, target, alpha=0.3, beta=0.7, smooth=0.1).item() == pytest.approx(expected)
    assert TverskyLoss(alpha=0.3, beta=0.7, smooth=0.1)(scores, target).item() == pytest.approx(expected)


def test_tversky_with_halves_is_dice():
    value = tversky_loss(SCORES, POSITIVE, smooth=0.0)
    torch.testing.assert_close(value, binary_dice_loss(SCORES, POSITIVE, smooth=0.0))


def test_certain_predictions():
    certain = 1e4 * torch.eye(3, dtype=torch.float64)[TARGET]
    assert dice_loss(certain, TARGET).item() == pytest.approx(0.0, abs=1e-12)
    assert dice_loss(certain, TARGET, alpha=0.5).item() == pytest.approx(0.5, abs=1e-6)  # w = 0: 1 - 1 / (1 + 1)
    assert binary_dice_loss(1e4 * (2.0 * POSITIVE.double() - 1.0), POSITIVE).item() == pytest.approx(0.0, abs=1e-12)


def test_order_of_examples_changes_nothing():
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(dice_loss(LOGITS[order], TARGET[order]), dice_loss(LOGITS, TARGET))
    torch.testing.assert_close(binary_dice_loss(SCORES.flip(0), POSITIVE.flip(0)), binary_dice_loss(SCORES, POSITIVE))


def test_soft_targets():
    hard = torch.nn.functional.one_hot(TARGET, 3).double()
    torch.testing.assert_close(dice_loss(LOGITS, hard, alpha=0.5), dice_loss(LOGITS, TARGET, alpha=0.5))
    p = LOGITS.softmax(-1)
    assert dice_loss(LOGITS, p).item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(binary_dice_loss(SCORES, POSITIVE.float()), binary_dice_loss(SCORES, POSITIVE))


def test_scores_of_two_classes():
    two = torch.stack([torch.cos(I), torch.cos(I) + SCORES], 1)
    torch.testing.assert_close(binary_dice_loss(two, POSITIVE), binary_dice_loss(SCORES, POSITIVE))
    torch.testing.assert_close(tversky_loss(two, POSITIVE), tversky_loss(SCORES, POSITIVE))


def test_ignored_rows():
    target = torch.tensor([0, -100, 1, -100])
    torch.testing.assert_close(dice_loss(LOGITS, target), dice_loss(LOGITS[[0, 2]], target[[0, 2]]))
    assert dice_loss(LOGITS, target, reduction="none")[[1, 3]].tolist() == [0.0, 0.0]
    logits = LOGITS.clone().requires_grad_()
    value = dice_loss(logits, torch.full((4,), -100))
    value.backward()
    assert value == 0.0
    assert (logits.grad == 0.0).all()


def test_nothing_there():
    for loss in (binary_dice_loss, tversky_loss):
        empty = torch.zeros(0, requires_grad=True)
        value = loss(empty, torch.zeros(0), smooth=0.0)
        value.backward()
        assert value == 0.0
        none = torch.full((3,), -200.0, requires_grad=True)  # probabilities of zero in float32
        value = loss(none, torch.zeros(3), smooth=0.0)
        value.backward()
        assert value == 0.0
        assert torch.isfinite(none.grad).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_gradients(alpha):
    logits, scores = LOGITS.clone().requires_grad_(), SCORES.clone().requires_grad_()
    assert gradcheck(lambda x: dice_loss(x, TARGET, alpha=alpha), logits)
    assert gradcheck(lambda x: binary_dice_loss(x, POSITIVE, alpha=alpha), scores)
    assert gradcheck(lambda x: tversky_loss(x, POSITIVE, alpha=alpha), scores)
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    dice_loss(certain, torch.tensor([0]), alpha=alpha).backward()
    assert torch.isfinite(certain.grad).all()


def test_half_precision_is_computed_in_float32():
    logits, scores = LOGITS.bfloat16(), SCORES.bfloat16()
    torch.testing.assert_close(dice_loss(logits, TARGET), dice_loss(logits.float(), TARGET))
    torch.testing.assert_close(binary_dice_loss(scores, POSITIVE), binary_dice_loss(scores.float(), POSITIVE))
    torch.testing.assert_close(tversky_loss(scores, POSITIVE), tversky_loss(scores.float(), POSITIVE))


def set_losses(rows):
    scores = SCORES.clone().requires_grad_()
    values = binary_dice_loss(scores[rows], POSITIVE[rows], alpha=0.5) + tversky_loss(scores[rows], POSITIVE[rows])
    values.backward()
    return values.item(), scores.grad


def on_two():
    return set_losses(slice(5) if rank() == 0 else slice(5, 12))  # shares of other sizes


def test_two_processes(run_processes):
    value, grad = set_losses(slice(12))
    (one, grad_of_one), (two, grad_of_two) = run_processes(on_two, 2)
    assert one == pytest.approx(value)
    assert two == pytest.approx(value)
    torch.testing.assert_close((grad_of_one + grad_of_two) / 2, grad)


@pytest.mark.parametrize(("loss", "kind"), [(dice_loss, DiceLoss), (binary_dice_loss, BinaryDiceLoss)])
def test_bad_knobs(loss, kind):
    for name in ("alpha", "smooth"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite, got -1"):
            loss(LOGITS, TARGET, **{name: -1.0})
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite, got -1"):
            kind(**{name: -1.0})
    with pytest.raises(ValueError, match="beta must be at least 0 and finite, got -1"):
        TverskyLoss(beta=-1.0)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"input must have the shape \[N, C\], got \(12,\)"):
        dice_loss(SCORES, POSITIVE)
    with pytest.raises(ValueError, match=r"class numbers must have the shape \(4,\), got \(12,\)"):
        dice_loss(LOGITS, POSITIVE)
    with pytest.raises(ValueError, match=r"soft targets must have the shape \(4, 3\), got \(4,\)"):
        dice_loss(LOGITS, TARGET.double())
    with pytest.raises(ValueError, match="reduction must be"):
        dice_loss(LOGITS, TARGET, reduction="median")
    for loss in (binary_dice_loss, tversky_loss):
        with pytest.raises(ValueError, match=r"target must have the shape of input, \(4, 3\), got \(4,\)"):
            loss(LOGITS, TARGET)
