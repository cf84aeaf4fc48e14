import pytest
import torch

from leyden.core import sample_keys, uniform
from leyden.data import Augment, Compose, TwoViews


class AddUniform(Augment):
    """Adds one number per sample."""

    def __call__(self, batch, keys):
        return {**batch, "input": batch["input"] + uniform(keys)}


class Double(Augment):
    def __call__(self, batch, keys):
        return {**batch, "input": 2.0 * batch["input"]}


KEYS = sample_keys(0, 0, torch.arange(2000))
BATCH = {"input": torch.zeros(2000), "target": torch.arange(2000)}


def test_compose_applies_in_order():
    batch = {"input": torch.ones(3), "target": torch.zeros(3)}
    keys = KEYS[:3]
    added = Compose([AddUniform(), Double()])(batch, keys)["input"]
    doubled = Compose([Double(), AddUniform()])(batch, keys)["input"]
    assert added.ge(2.0).all()
    assert added.lt(4.0).all()
    assert doubled.lt(3.0).all()
    assert batch["input"].tolist() == [1.0] * 3


def correlation(a, b):
    return torch.corrcoef(torch.stack([a, b]))[0, 1].abs()


def test_each_part_draws_numbers_of_its_own():
    once = Compose([AddUniform()])(BATCH, KEYS)["input"]
    twice = Compose([AddUniform(), AddUniform()])(BATCH, KEYS)["input"]
    assert correlation(once, twice - once) < 0.08  # 3.6 standard deviations of 2000 independent pairs
    nested = Compose([Compose([AddUniform(), AddUniform()])])(BATCH, KEYS)["input"]
    assert not torch.equal(nested, twice)


def test_two_views_are_made_from_the_raw_input():
    batch = TwoViews(weak=AddUniform(), strong=Double())({**BATCH, "input": torch.ones(2000)}, KEYS)
    assert batch.keys() == {"input", "input_strong", "target"}
    assert batch["input_strong"].unique().tolist() == [2.0]
    assert batch["input"].min() >= 1.0
    assert batch["input"].max() < 2.0


def test_two_views_by_the_same_augmentation_differ():
    augment = AddUniform()
    batch = TwoViews(weak=augment, strong=augment, second=augment)(BATCH, KEYS)
    assert batch.keys() == {"input", "input_2", "input_strong", "target"}
    for first, second in (("input", "input_2"), ("input", "input_strong"), ("input_2", "input_strong")):
        assert correlation(batch[first], batch[second]) < 0.08


def test_a_single_view_is_refused():
    with pytest.raises(ValueError, match="TwoViews needs strong or second beside weak"):
        TwoViews(weak=Double())
