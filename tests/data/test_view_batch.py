import itertools

import pytest
import torch

from leyden.data import Compose, GaussianNoise, GlobalBatchSampler, ViewAugment, ViewBatch


@pytest.mark.parametrize(
    ("num_samples", "views", "expected"),
    [
        (6, 2, [[2, 2, 5, 5, 3, 3], [0, 0, 1, 1, 4, 4], [1, 1, 5, 5, 2, 2], [0, 0, 3, 3, 4, 4]]),
        (8, 4, [[4] * 4 + [0] * 4, [7] * 4 + [3] * 4, [2] * 4 + [5] * 4, [1] * 4 + [6] * 4, [5] * 4 + [4] * 4]),
    ],
)
def test_epochs_of_the_authors(num_samples, views, expected):
    # printed by ViewBatchReplay of hankyul2/ViewBatchModel with selected_round=0, which seeds by epoch // views
    order = ViewBatch(views)
    for epoch, indices in enumerate(expected):
        generator = torch.Generator().manual_seed(epoch // views)
        assert order(num_samples, epoch, generator).tolist() == indices


def test_an_epoch_has_all_views_of_its_samples():
    order = ViewBatch(3, shuffle=False)
    epochs = [order(5, epoch, torch.Generator()).tolist() for epoch in range(6)]
    assert epochs == [[0, 0, 0], [1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]] * 2
    with pytest.raises(ValueError, match="views must be at most the number of training samples, 2, got 3"):
        order(2, 0, torch.Generator())


def epochs(sampler, numbers):
    found = []
    for epoch in numbers:
        sampler.set_epoch(epoch)
        found.append(list(itertools.chain(*(indices for _, indices in sampler))))
    return found


def test_a_round_of_epochs_has_each_sample_as_often_as_there_are_views():
    sampler = GlobalBatchSampler(20, 4, order=ViewBatch(4), seed=3)
    first, second = (epochs(sampler, range(begin, begin + 4)) for begin in (0, 4))
    for round_ in (first, second):
        assert all(len(epoch) == 20 for epoch in round_)
        everything = list(itertools.chain(*round_))
        assert torch.bincount(torch.tensor(everything)).tolist() == [4] * 20
        assert all(len(set(everything[i : i + 4])) == 1 for i in range(0, 80, 4))
    assert first != second
    assert epochs(sampler, [6, 1]) == [second[2], first[1]]  # a pure function of the epoch
    assert epochs(GlobalBatchSampler(20, 4, order=ViewBatch(4), seed=4), range(4)) != first


def test_one_view_is_the_usual_order():
    assert epochs(GlobalBatchSampler(20, 4, order=ViewBatch(1)), range(3)) == epochs(
        GlobalBatchSampler(20, 4), range(3)
    )
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        ViewBatch(0)


def test_views_get_random_numbers_of_their_own():
    batch = {"input": torch.zeros(5, 1, 2, 2), "target": torch.arange(5)}
    keys = torch.tensor([11, 11, 5, 11, 5])
    noise = GaussianNoise(1.0)
    same = noise(batch, keys)["input"]
    assert torch.equal(same[0], same[1])
    own = ViewAugment(noise)(batch, keys)["input"]
    assert len({tuple(image.flatten().tolist()) for image in own}) == 5
    assert torch.equal(own[[0, 2]], same[[0, 2]])  # first views are as without
    twice = ViewAugment(noise)(batch, keys[[2, 4, 0, 1, 3]])["input"]
    assert torch.equal(twice, own[[2, 4, 0, 1, 3]])  # wherever the rows stand


def test_further_views_are_changed_more():
    batch = {"input": torch.zeros(4, 1, 4, 4), "target": torch.arange(4)}
    changed = ViewAugment(GaussianNoise(0.01), GaussianNoise(10.0))(batch, torch.tensor([7, 7, 8, 7]))
    assert (changed["input"].flatten(1).std(1) > 1.0).tolist() == [False, True, False, True]
    assert changed["target"] is batch["target"]
    unchanged = ViewAugment(Compose([]), GaussianNoise(10.0))(batch, torch.tensor([7, 7, 8, 7]))
    assert unchanged["input"].flatten(1).any(1).tolist() == [False, True, False, True]
