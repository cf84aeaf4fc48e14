import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from leyden.losses import (
    ConsistencyTrainingLoss,
    PseudoHuber,
    consistency_teacher_decay,
    consistency_training_loss,
    ict_discretization_steps,
    karras_sigmas,
    lognormal_sigma_probabilities,
    progressive_discretization_steps,
    pseudo_huber_loss,
)

A = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.0, 4.0], [0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)


def test_pseudo_huber_by_hand():
    # distances 5, 0 and 1; sqrt(25 + 144) = 13
    assert pseudo_huber_loss(A, B, c=12.0, reduction="none").tolist() == pytest.approx([1.0, 0.0, 145**0.5 - 12.0])
    assert PseudoHuber(c=12.0)(A, B).item() == pytest.approx((1.0 + 145**0.5 - 12.0) / 3)
    c = 0.00054 * 2**0.5
    assert pseudo_huber_loss(A, B, reduction="sum").item() == pytest.approx(
        (25 + c**2) ** 0.5 + (1 + c**2) ** 0.5 - 2 * c
    )


def test_pseudo_huber_lies_between_a_distance_and_its_square():
    assert pseudo_huber_loss(A, B, c=1e-9, reduction="none").tolist() == pytest.approx([5.0, 0.0, 1.0])
    each = pseudo_huber_loss(A, B, c=1e6, reduction="none")
    assert (2e6 * each).tolist() == pytest.approx([25.0, 0.0, 1.0])
    tiny = torch.full((1, 4), 1e-7)
    assert pseudo_huber_loss(tiny, torch.zeros(1, 4), c=1.0).item() == pytest.approx(2e-14, rel=1e-5)


def test_pseudo_huber_has_a_gradient_everywhere():
    x = A.clone().requires_grad_()
    pseudo_huber_loss(x, B).backward()
    assert torch.equal(x.grad[1], torch.zeros(2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: pseudo_huber_loss(x, B, c=0.3), A.clone().requires_grad_())


@pytest.mark.parametrize(
    ("target", "knobs", "match"),
    [(B[:2], {}, "shape of prediction"), (B, {"c": 0.0}, "c must be positive"), (B, {"reduction": "all"}, "reduction")],
)
def test_pseudo_huber_refuses(target, knobs, match):
    with pytest.raises(ValueError, match=match):
        pseudo_huber_loss(A, target, **knobs)


def test_sigmas():
    # t of `consistency_losses` in openai/consistency_models (commit e32b69e) for 5 scales, in float64, upside down
    expected = [0.002, 0.1697528, 2.5152190, 17.5278320, 80.0]
    root = [0.002 ** (1 / 7) + i / 4 * (80.0 ** (1 / 7) - 0.002 ** (1 / 7)) for i in range(5)]
    assert karras_sigmas(5).tolist() == pytest.approx([r**7 for r in root], rel=1e-12)
    assert karras_sigmas(5).tolist() == pytest.approx(expected, rel=1e-4)
    assert karras_sigmas(1281)[0] == 0.002
    assert karras_sigmas(1281)[-1] == 80.0


def test_improved_curriculum_doubles():
    # 8 stages (10 to 1280) of 50,000 of 400,000 steps, as the paper has it for CIFAR-10
    steps = [ict_discretization_steps(k, 400_000) for k in range(0, 400_000, 50_000)]
    assert steps == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert ict_discretization_steps(49_999, 400_000) == 11
    assert ict_discretization_steps(400_000, 400_000) == 1281
    assert max(ict_discretization_steps(k, 7, s0=4, s1=50) for k in range(9)) == 51
    assert [ict_discretization_steps(k, 2, s0=4, s1=64) for k in range(5)] == [5, 9, 17, 33, 65]  # too few steps


def test_plain_curriculum_is_that_of_the_authors():
    # `create_ema_and_scales_fn("adaptive", 0.95, "progressive", 2, 150, 1000, None)` of the authors' code
    values = {}
    for k in (0, 1, 10, 500, 999):
        scales = max(math.ceil(math.sqrt(k / 1000 * (151**2 - 2**2) + 2**2) - 1), 1)
        values[k] = scales + 1, math.exp(2 * math.log(0.95) / scales)
    assert [n for n, _ in values.values()] == [2, 6, 16, 107, 151]
    for k, (number, decay) in values.items():
        assert progressive_discretization_steps(k, 1000) == number
        assert consistency_teacher_decay(number) == pytest.approx(decay, rel=1e-12)


def test_probabilities_of_sigmas():
    sigmas = karras_sigmas(65)
    shares = lognormal_sigma_probabilities(sigmas)
    expected = torch.from_numpy(norm.cdf(sigmas.log().numpy(), loc=-1.1, scale=2.0)).diff()
    assert shares.tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-9)
    assert shares.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert (lognormal_sigma_probabilities(karras_sigmas(1281)) > 0).all()


X = torch.tensor([[0.5, -0.5], [1.0, 0.0]], dtype=torch.float64)
NOISE = torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
HIGH, LOW = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, 0.25], dtype=torch.float64)


def halve(x, sigma):
    return 0.5 * x


def test_loss_by_hand():
    # half of the noise between the two: [[0.5, -1], [0.0625, 0.125]]
    squares = [1.25, 0.01953125]
    arguments = (halve, halve, X, HIGH, LOW, NOISE)
    mse = consistency_training_loss(*arguments, distance="mse", weighting="uniform", reduction="none")
    assert mse.tolist() == pytest.approx([square / 2 for square in squares])
    c = 0.00054 * 2**0.5
    huber = [(square + c * c) ** 0.5 - c for square in squares]
    expected = (huber[0] / 1.0 + huber[1] / 0.25) / 2
    assert consistency_training_loss(*arguments).item() == pytest.approx(expected)
    assert ConsistencyTrainingLoss()(*arguments).item() == pytest.approx(expected)


def test_loss_is_zero_for_a_consistent_function():
    assert consistency_training_loss(lambda x, s: X, lambda x, s: X, X, HIGH, LOW, NOISE).item() == 0.0


def test_only_the_noisier_side_has_a_gradient_and_both_have_the_same_dropout():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    masks = []

    def denoise(x, sigma):
        masks.append(nn.functional.dropout(torch.ones(1000), 0.5))
        assert torch.is_grad_enabled() == bool(torch.equal(sigma, HIGH))
        return weight * x

    consistency_training_loss(denoise, denoise, X, HIGH, LOW, NOISE, distance="mse", weighting="uniform").backward()
    assert torch.equal(*masks)
    noisy, less = X + HIGH[:, None] * NOISE, X + LOW[:, None] * NOISE
    assert weight.grad.item() == pytest.approx((2.0 * (2.0 * noisy - 2.0 * less) * noisy).mean().item())
    assert not torch.equal(nn.functional.dropout(torch.ones(1000), 0.5), masks[0]), "the random numbers must go on"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"distance": "l1"}, "distance must be"),
        ({"weighting": "snr"}, "weighting must be"),
        ({"noise": NOISE[:1]}, "noise must have the same"),
        ({"sigma_low": LOW[:1]}, "both sigmas"),
    ],
)
def test_loss_refuses(change, match):
    arguments = {"input": X, "sigma_high": HIGH, "sigma_low": LOW, "noise": NOISE}
    with pytest.raises(ValueError, match=match):
        consistency_training_loss(halve, halve, **arguments | change)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: karras_sigmas(1), "n must be"),
        (lambda: karras_sigmas(4, sigma_min=90.0), "sigma_min must lie"),
        (lambda: karras_sigmas(4, rho=0.0), "rho must be"),
        (lambda: ict_discretization_steps(-1, 5), "step must be"),
        (lambda: progressive_discretization_steps(0, 5, s0=9, s1=3), "at most s1"),
        (lambda: consistency_teacher_decay(1), "num_sigmas"),
        (lambda: consistency_teacher_decay(3, mu0=0.0), "mu0 must lie"),
        (lambda: lognormal_sigma_probabilities(karras_sigmas(4), std=0.0), "std must be"),
    ],
)
def test_schedules_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call()
