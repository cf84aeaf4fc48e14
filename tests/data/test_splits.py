import pytest
import torch

from leyden.data import shuffled_order, split_indices, stratified_order

LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


def test_parts_cover_every_sample_once():
    parts = split_indices(100, {"val": 0.15, "test": 0.25}, seed=3)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 60, "val": 15, "test": 25}
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(100))


def test_classes_keep_their_shares_in_every_part():
    parts = split_indices(100, {"val": 0.1, "test": 0.2}, seed=0, labels=LABELS)
    counts = {name: LABELS[rows].bincount().tolist() for name, rows in parts.items()}
    assert counts == {"train": [42, 21, 7], "val": [6, 3, 1], "test": [12, 6, 2]}


def test_prefixes_of_the_stratified_order_are_stratified():
    labels = torch.arange(50) % 5
    for length in (5, 10, 25):
        assert labels[stratified_order(labels, 1)[:length]].bincount().tolist() == [length // 5] * 5


def test_orders_are_functions_of_the_seed_alone():
    before = torch.get_rng_state()
    for order in (lambda seed: shuffled_order(100, seed), lambda seed: stratified_order(LABELS, seed)):
        assert sorted(order(5).tolist()) == list(range(100))
        assert torch.equal(order(5), order(5))
        assert not torch.equal(order(5), order(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_which_sample_comes_first_is_random():
    places = torch.stack([shuffled_order(10, seed) for seed in range(2000)])
    counts = places[:, 0].bincount(minlength=10)  # expected 200 each, standard deviation 13.4
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"val": 0.01, "test": 0.5}, r"val_fraction must lie in \(0, 1\) and give at least one of the 10 samples"),
        ({"val": 0.1, "test": 1.5}, "test_fraction must lie"),
        ({"val": 0.5, "test": 0.5}, "val_fraction=0.5 and test_fraction=0.5 leave no training sample of 10"),
    ],
)
def test_an_empty_part_is_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        split_indices(10, fractions, seed=0)
