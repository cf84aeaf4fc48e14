import math

import pytest
import torch

from leyden.optim import WarmupCosine


def make(lr=1.0, groups=1, **kwargs):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * (i + 1)} for i in range(groups)]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    return optimizer, WarmupCosine(optimizer, **kwargs)


def rates(optimizer, scheduler, num_steps):
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_numbers_by_hand():
    # W = 2: 1/3, 2/3; then the cosine of 0, 45, 90, 135 degrees, and the end
    half = math.sqrt(0.5)
    expected = [1 / 3, 2 / 3, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 0.0, 0.0]
    assert rates(*make(warmup=2, total_steps=6), 8) == pytest.approx(expected)


def test_share_of_steps_and_floor_and_groups():
    # W = 0.25 * 4 = 1; the floor is 0.2 of each group's own rate, which is 2 for the second
    expected = [1.0, 2.0, 2 * (0.2 + 0.8 * 0.75), 2 * (0.2 + 0.8 * 0.25), 0.4]
    assert rates(*make(groups=2, warmup=0.25, total_steps=4, min_lr_ratio=0.2), 5) == pytest.approx(expected)


def test_no_warmup_is_torchs_cosine():
    optimizer, scheduler = make(lr=0.3, warmup=0, total_steps=10, min_lr_ratio=0.1)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=10, eta_min=0.03)
    assert rates(optimizer, scheduler, 10) == pytest.approx(rates(other, reference, 10))


def test_state_goes_on():
    whole = rates(*make(warmup=3, total_steps=10), 10)
    optimizer, scheduler = make(warmup=3, total_steps=10)
    first = rates(optimizer, scheduler, 4)
    state, optimizer_state = scheduler.state_dict(), optimizer.state_dict()
    optimizer, scheduler = make(warmup=3, total_steps=10)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(state)
    assert first + rates(optimizer, scheduler, 6) == whole


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "total_steps must be at least 1, got None"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"total_steps": 5, "warmup": 6}, "between 0 and total_steps = 5, got 6"),
        ({"total_steps": 5, "warmup": 1.5}, "a share in"),
        ({"total_steps": 5, "min_lr_ratio": 2.0}, "min_lr_ratio must lie in"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        make(**arguments)
