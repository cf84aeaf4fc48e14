import pytest
import torch
from torch.nn import functional

from leyden.losses import NoiseFiTLoss, noisefit_loss, noisefit_penalty

LOGITS = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 2.0, -3.0]], [[0.0, 0.1, 0.0], [3.0, 0.0, 1.0]]], dtype=torch.float64)
NOISY1 = LOGITS + torch.tensor(
    [[[0.1, -0.2, 0.3], [0.0, 0.5, 0.2]], [[-0.3, 0.1, 0.4], [-1.0, 0.2, 0.0]]], dtype=torch.float64
)
NOISY2 = LOGITS + torch.tensor(
    [[[0.2, 0.1, -0.4], [0.3, -0.1, 1.2]], [[0.1, 0.7, 0.0], [0.5, 0.2, -0.6]]], dtype=torch.float64
)
TARGET = torch.tensor([[0, 1], [-100, 2]])


@pytest.mark.parametrize(
    ("knobs", "target", "expected"),  # printed by `compute_loss` of akhadangi/NoiseFiT, commit 48c61c8, v1
    [
        ({}, TARGET, 0.49106939991672605),
        (
            {"alpha": 0.3, "consistency": 0.4, "temperature": 2.0},
            torch.tensor([[0, -100], [1, 2]]),
            0.483885732979952,
        ),
    ],
)
def test_the_authors_numbers(knobs, target, expected):
    assert noisefit_loss(LOGITS, NOISY1, NOISY2, target, **knobs).item() == pytest.approx(expected, abs=1e-8)
    assert NoiseFiTLoss(**knobs)(LOGITS, NOISY1, NOISY2, target).item() == pytest.approx(expected, abs=1e-8)


def test_without_noise_it_is_a_share_of_the_cross_entropy():
    value = noisefit_loss(LOGITS, LOGITS, LOGITS, TARGET, alpha=0.3)
    task = functional.cross_entropy(LOGITS.flatten(0, 1), TARGET.flatten())
    torch.testing.assert_close(value, 0.3 * task)
    whole = noisefit_loss(LOGITS, NOISY1, NOISY2, TARGET, alpha=1.0, consistency=0.0)
    torch.testing.assert_close(whole, task)


def test_soft_targets():
    hard = torch.tensor([[0, 1], [1, 2]])
    soft = functional.one_hot(hard, 3).to(torch.float64)
    value = noisefit_loss(LOGITS, NOISY1, NOISY2, soft)
    torch.testing.assert_close(value, noisefit_loss(LOGITS, NOISY1, NOISY2, hard))
    mixed = noisefit_loss(LOGITS, NOISY1, NOISY2, 0.5 * soft + 0.5 * soft.flip(-1))
    by_hand = 0.5 * value + 0.5 * noisefit_loss(LOGITS, NOISY1, NOISY2, 2 - hard)
    torch.testing.assert_close(mixed, by_hand)


def test_another_ignored_number_and_no_token_at_all():
    others = TARGET.masked_fill(TARGET == -100, 7)
    value = noisefit_loss(LOGITS, NOISY1, NOISY2, others, ignore_index=7)
    torch.testing.assert_close(value, noisefit_loss(LOGITS, NOISY1, NOISY2, TARGET))
    assert noisefit_penalty(LOGITS, NOISY1, NOISY2, mask=torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0


def test_gradients_reach_all_three_passes():
    inputs = [logits.clone().requires_grad_() for logits in (LOGITS, NOISY1, NOISY2)]
    assert torch.autograd.gradcheck(lambda *logits: noisefit_loss(*logits, TARGET, temperature=2.0), inputs)
    assert all(g.any() for g in torch.autograd.grad(noisefit_loss(*inputs, TARGET, alpha=0.0), inputs))


def test_half_precision_is_computed_in_float32():
    value = noisefit_loss(*(logits.to(torch.bfloat16) for logits in (LOGITS, NOISY1, NOISY2)), TARGET)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.491069, rel=0.02)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"consistency": -1.0}, "consistency must be at least 0, got -1.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"noisy_logits2": LOGITS[:1]}, r"noisy_logits2 must have the shape of logits, \(2, 2, 3\), got \(1, 2, 3\)"),
        ({"target": TARGET[0]}, r"target must be int64 \(2, 2\) or floating point \(2, 2, 3\), got torch.int64 \(2,\)"),
    ],
)
def test_bad_input(change, match):
    given = {"logits": LOGITS, "noisy_logits1": NOISY1, "noisy_logits2": NOISY2, "target": TARGET}
    with pytest.raises(ValueError, match=match):
        noisefit_loss(**(given | change))
