"""Orders of fewer samples, seen several times."""

from collections import Counter

import pytest
import torch

from leyden.data import Repeated


def order(epochs, epoch=0, seed=0, num_samples=20):
    return Repeated(epochs, seed)(num_samples, epoch, torch.Generator().manual_seed(epoch)).tolist()


def test_one_pass_is_a_shuffle():
    assert sorted(order(1)) == list(range(20))
    assert order(1) != list(range(20))


def test_every_pass_has_the_same_samples_in_another_order():
    indices = order(3)
    passes = [indices[start : start + 6] for start in (0, 6, 12)]
    assert len(indices) == 18
    assert len({tuple(sorted(part)) for part in passes}) == 1
    assert len({tuple(part) for part in passes}) == 3
    assert set(Counter(indices).values()) == {3}


def test_the_choice_depends_on_the_seed_alone():
    assert set(order(4, epoch=0)) == set(order(4, epoch=5))
    assert order(4, epoch=0) != order(4, epoch=5)
    assert set(order(4)) != set(order(4, seed=1))


def test_errors():
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        Repeated(0)
    with pytest.raises(ValueError, match="epochs is 21, but there are 20 training samples"):
        order(21)
