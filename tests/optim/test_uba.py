import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from leyden.optim import UBALR, uba_factor


def make(lr=0.5, **kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, UBALR(optimizer, **kwargs)


def rates(optimizer, scheduler, num_steps):
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("third", "phi", "expected"),
    [  # by hand: c is 2, 3/2, 1/2, 0 after 0, 1, 2, 3 thirds
        (0, 0.5, Fraction(1)),
        (1, 1, Fraction(6, 7)),  # 2 * 3/2 / (2 + 3/2)
        (2, 1, Fraction(2, 5)),  # 2 * 1/2 / (2 + 1/2)
        (1, Fraction(1, 2), Fraction(12, 13)),  # 3 / (1 + 9/4)
        (2, Fraction(1, 2), Fraction(4, 7)),  # 1 / (1 + 3/4)
        (1, 5, Fraction(6, 11)),  # 3 / (10 - 9/2)
        (2, 5, Fraction(2, 17)),  # 1 / (10 - 3/2)
        (3, 5, Fraction(0)),
    ],
)
def test_numbers_by_hand(third, phi, expected):
    assert uba_factor(7 * third, 21, float(phi)) == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("phi", [1e-3, 0.3, 1.0, 1.7, 4.0, 100.0])
def test_is_the_fraction_of_the_paper(phi):
    for step in range(50):
        c = 1.0 + math.cos(math.pi * step / 50)
        assert uba_factor(step, 50, phi) == pytest.approx(2.0 * c / (2.0 * phi + (2.0 - phi) * c), rel=1e-12)


def test_falls_with_the_step_and_with_phi():
    for phi in (0.1, 1.0, 2.0, 5.0):
        shares = [uba_factor(step, 40, phi) for step in range(41)]
        assert shares[0] == 1.0
        assert shares[-1] == 0.0
        assert all(late < early for early, late in pairwise(shares))
    for step in (1, 20, 39):
        shares = [uba_factor(step, 40, phi) for phi in (0.0, 0.1, 1.0, 2.0, 5.0)]
        assert all(large < small for small, large in pairwise(shares))


def test_phi_two_is_torchs_cosine():
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=10, eta_min=0.03)
    assert rates(*make(lr=0.3, total_steps=10, phi=2.0, eta_min=0.03), 11) == pytest.approx(rates(other, reference, 11))


def test_phi_zero_is_constant():
    assert rates(*make(total_steps=3, phi=0.0, eta_min=0.1), 6) == [0.5] * 6


def test_end_and_state():
    whole = rates(*make(total_steps=6, eta_min=0.1), 9)
    assert whole[6:] == [0.1] * 3
    optimizer, scheduler = make(total_steps=6, eta_min=0.1)
    first = rates(optimizer, scheduler, 4)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make(total_steps=6, eta_min=0.1)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + rates(optimizer, scheduler, 5) == whole


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "total_steps must be at least 1, got None"),
        ({"total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"total_steps": 5, "phi": -0.1}, "phi must be a number from 0 on, got -0.1"),
        ({"total_steps": 5, "phi": math.nan}, "phi must be a number from 0 on, got nan"),
        ({"total_steps": 5, "eta_min": -1.0}, "eta_min must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        make(**arguments)


def test_bad_step():
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        uba_factor(-1, 5, 1.0)
