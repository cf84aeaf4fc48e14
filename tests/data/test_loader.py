import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from leyden.data import EvalLoader, GlobalBatchSampler, ResumableLoader, Sequential, TensorDictDataset

VALUES = torch.arange(48.0)


class Single(Dataset):
    """Without `__getitems__`."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        return {"input": VALUES[index]}


class Noisy(Single):
    """Draws from the three global generators."""

    def __getitem__(self, index):
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return {"input": VALUES[index], "noise": torch.tensor(noise)}


def loader(num_workers=0, dataset=None, **kwargs):
    sampler = GlobalBatchSampler(48, 8, **kwargs)
    dataset = dataset or TensorDictDataset({"input": VALUES})
    return ResumableLoader(dataset, sampler, num_workers=num_workers)


def epoch(made, number):
    made.sampler.set_epoch(number)
    return list(made)


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert torch.equal(batch[key], other[key])


@pytest.mark.parametrize("dataset", [Single(), TensorDictDataset({"input": VALUES})])
def test_workers_give_the_same_batches_and_index_is_right(dataset):
    alone, helped = loader(0, dataset), loader(2, dataset)
    for number in range(3):
        batches = epoch(alone, number)
        assert_equal(epoch(helped, number), batches)
        for batch in batches:
            assert batch["index"].dtype == torch.int64
            assert torch.equal(batch["input"], VALUES[batch["index"]])
        assert torch.cat([batch["index"] for batch in batches]).sort().values.tolist() == list(range(48))


def test_getitems_is_used_where_there_is_one():
    class Whole(Single):
        def __getitems__(self, indices):
            return {"input": VALUES[indices], "calls": torch.tensor(1)}

    assert all("calls" in batch for batch in loader(dataset=Whole()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_state_counts_batches_handed_out(num_workers):
    made = loader(num_workers)
    iterator = iter(made)
    for handed_out in range(1, 4):  # with 2 workers 4 more are prefetched
        next(iterator)
        assert made.state_dict()["cursor"] == 8 * handed_out
    assert len(made) == 6


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_cut_and_resumed(num_workers, cut):
    expected = list(loader())
    first, second = loader(num_workers), loader(num_workers)
    head = list(itertools.islice(iter(first), cut))
    second.load_state_dict(first.state_dict())
    assert_equal(head + list(second), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_abandoned_epoch_starts_anew(num_workers):
    made = loader(num_workers)
    next(iter(made))
    assert_equal(list(made), list(loader()))
    assert_equal(epoch(made, 1), epoch(loader(), 1))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("new_size", "sizes"), [(16, [8, 8, 16, 16]), (4, [8, 8] + [4] * 8), (48, [8, 8])])
def test_a_resize_drops_what_was_prefetched(num_workers, new_size, sizes):
    made = loader(num_workers, order=Sequential())
    batches = []
    for batch in made:
        batches.append(batch["index"])
        if len(batches) == 2:
            made.sampler.batch_size = new_size
            assert len(made) == len(sizes)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(sum(sizes)))


def test_workers_draw_the_same_random_numbers_after_a_resume():
    expected = [epoch(made, number) for made in [loader(2, Noisy())] for number in range(2)]
    assert not torch.equal(expected[0][0]["noise"], expected[0][1]["noise"])
    assert not torch.equal(expected[0][0]["noise"], expected[1][0]["noise"])
    for number, cut in [(0, 1), (1, 4)]:
        first, second = loader(2, Noisy()), loader(2, Noisy())
        first.sampler.set_epoch(number)
        head = list(itertools.islice(iter(first), cut))
        torch.manual_seed(7)
        second.load_state_dict(first.state_dict())
        assert_equal(head + list(second), expected[number])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generators_are_left_alone(num_workers):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1:3], random.getstate()  # noqa: NPY002

    before = repr(states())
    made = loader(num_workers)
    epoch(made, 0), epoch(made, 1)
    evaluation = EvalLoader(Single(), [[0, 1], [2]], num_workers=num_workers)
    list(evaluation), list(evaluation)
    assert repr(states()) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_eval_loader(num_workers):
    made = EvalLoader(Single(), [[0, 1], [5], [3, 2]], num_workers=num_workers)
    assert len(made) == 3
    for _ in range(2):
        assert [batch["index"].tolist() for batch in made] == [[0, 1], [5], [3, 2]]
        assert [batch["input"].tolist() for batch in made] == [[0.0, 1.0], [5.0], [3.0, 2.0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_replicas_share_the_batches(num_workers):
    shares = [list(loader(num_workers, num_replicas=2, rank=rank)) for rank in range(2)]
    both = [torch.cat([a["index"], b["index"]]) for a, b in zip(*shares, strict=True)]
    assert torch.equal(torch.stack(both), torch.stack([batch["index"] for batch in loader()]))
