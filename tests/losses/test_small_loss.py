import numpy as np
import pytest
import torch

from leyden.losses import forget_rate_at, small_loss_selection


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.0, [3, 1, 4, 0, 2]), (0.2, [3, 1, 4, 0]), (0.5, [3, 1]), (0.79, [3])],
)
def test_the_smallest_are_kept(rate, expected):
    losses = torch.tensor([2.0, 0.5, 7.0, 0.1, 0.5], requires_grad=True)
    assert small_loss_selection(losses, rate).tolist() == expected


def test_ties_keep_their_order():
    assert small_loss_selection(torch.ones(100), 0.1).tolist() == list(range(90))


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1.0, r"forget_rate must lie in \[0, 1\), got 1.0"),
        (-0.1, r"forget_rate must lie in \[0, 1\), got -0.1"),
        (0.9, "forget_rate 0.9 leaves none of 5 samples"),
    ],
)
def test_bad_rates(rate, message):
    with pytest.raises(ValueError, match=message):
        small_loss_selection(torch.rand(5), rate)


@pytest.mark.parametrize("gradual", [0, 1, 2, 5, 10])
def test_rates_of_the_authors_code(gradual):
    # co_teaching_resnet/main.py of github.com/yingyichen-cyy/Nested-Co-teaching at 9a2fc40
    schedule = np.ones(12) * 0.3
    schedule[:gradual] = np.linspace(0, 0.3, gradual)
    assert [forget_rate_at(epoch, rate=0.3, gradual=gradual) for epoch in range(12)] == pytest.approx(schedule.tolist())
