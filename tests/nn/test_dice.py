"""Numbers of shenweichen/DeepCTR-Torch at f685425: ``Dice`` in float64, with its batch norm as it starts."""

import pytest
import torch

from leyden.nn import Dice

X = 2.0 * torch.arange(8, dtype=torch.float64).sin().view(4, 2)
TRAINED = [
    [0.0, 0.9830751693464947],
    [1.5957781892403282, 0.06617301110998558],
    [-0.7003560720893672, 0.48033037076232177],
    [-0.32387719839802215, 0.6577414912239362],
]
EVALUATED = [
    [0.0, 1.2335392841374515],
    [1.6289696206473911, 0.09482553094008248],
    [-0.6571237362218665, 0.5546493618725759],
    [-0.3128061132091011, 0.8533421932739954],
]
OF_SEQUENCES = [
    [[0.0, 1.063193548280016], [1.539056380452051, 0.08859344944483204], [-0.6994445179223501, 0.3545670316721683]],
    [
        [-0.3160347332884672, 0.7328537412242214],
        [1.7017731783099925, 0.36878224483064087],
        [-0.5490290671256997, 0.3970904770185167],
    ],
]


def make(*alpha):
    dice = Dice(2).double()
    dice.alpha.data = torch.tensor(alpha, dtype=torch.float64)
    return dice


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0.0)


@torch.no_grad()
def test_numbers_of_the_port():
    dice = make(0.3, -0.5)
    close(dice(X), TRAINED)
    close(dice.norm.running_mean, [-0.006346028334, 0.034032665846])
    close(dice.eval()(X), EVALUATED)


@torch.no_grad()
def test_sequences_are_normalised_over_samples_and_steps():
    x = 2.0 * torch.arange(12, dtype=torch.float64).sin().view(2, 3, 2)
    close(make(0.3, -0.5)(x), OF_SEQUENCES)


@torch.no_grad()
def test_slope_one_is_the_identity():
    torch.testing.assert_close(make(1.0, 1.0)(X), X)


def test_gradient_of_the_slope_by_the_equation():
    dice = make(0.3, -0.5)
    dice(X).sum().backward()
    p = ((X - X.mean(0)) / (X.var(0, unbiased=False) + 1e-8).sqrt()).sigmoid()
    torch.testing.assert_close(dice.alpha.grad, ((1.0 - p) * X).sum(0))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        Dice(0)
    for x in (torch.zeros(2), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"x must have shape \[N, ..., 2\], got"):
            Dice(2)(x)
