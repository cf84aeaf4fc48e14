import math

import pytest
import torch

from leyden.data import GlobalBatchSampler, HardBatches, hardest_batches


def test_hardest_batches():
    losses = torch.tensor([0.5, 2.0, math.nan, 0.1, 2.0, math.inf, 1.0, 0.7, 0.2, 0.3])
    assert hardest_batches(losses, 0.2) == [1, 4]  # of equal losses the first
    assert hardest_batches(losses, 0.35) == [1, 4, 6]
    assert hardest_batches(losses, 1e-6) == [1]
    assert hardest_batches(losses, 1.0) == [1, 4, 6, 7, 0, 9, 8, 3]  # not those that are not finite
    assert len(hardest_batches(torch.rand(100), 0.29)) == 29, "0.29 * 100 is a little below 29"
    assert hardest_batches(torch.full((3,), math.nan)) == hardest_batches(torch.empty(0)) == []


def test_what_the_choice_depends_on():
    losses = torch.rand(20, generator=torch.Generator().manual_seed(0))
    permutation = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    chosen = hardest_batches(losses, 0.3)
    assert permutation[hardest_batches(losses[permutation], 0.3)].tolist() == chosen
    assert hardest_batches(losses + 8.0, 0.3) == chosen


def epochs(order, losses, num_epochs, **kwargs):
    """The batches of each epoch; batch ``j`` of the first epoch has the loss ``losses[j]`` less 1 for each training."""
    sampler = GlobalBatchSampler(23, 4, order=order, **kwargs)
    first, seen = None, []
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        batches = [batch for _, batch in sampler]
        assert len(sampler) == len(batches)
        first = first or batches
        numbers = [first.index(batch) for batch in batches]
        for step, number in enumerate(numbers):
            order.record(step, torch.tensor(losses[number]))
            losses[number] -= 1.0
        seen.append(numbers)
    return seen


def test_a_batch_comes_again_until_it_is_easier_than_others():
    # by hand: losses after the first epoch 3, 2.5, 0.7, 2.9, 0.1; then those chosen have 2 and 1.9, and so on
    seen = epochs(HardBatches(4, delta=0.4), [3.0, 2.5, 0.7, 2.9, 0.1], 5)
    assert seen == [[0, 1, 2, 3, 4], [0, 3], [0, 1], [1, 3], [0, 3]]


def test_all_batches_come_again_with_a_delta_of_one():
    assert epochs(HardBatches(4, delta=1.0), [3.0, 2.5, 0.7, 2.9, 0.1], 3) == [[0, 1, 2, 3, 4]] * 3


def test_goes_on_from_its_state():
    order = HardBatches(4, delta=0.4)
    epochs(order, [3.0, 2.5, 0.7, 2.9, 0.1], 3)
    state, later = order.state_dict(), HardBatches(4, delta=0.4)
    order(23, 3, torch.Generator())
    later.load_state_dict(state)
    assert len(later(23, 0, torch.Generator().manual_seed(9))) == 20, "as a resumed run asks"
    assert later.chosen == [0, 1]
    later(23, 3, torch.Generator())
    assert later.chosen == order.chosen == [1, 3]
    assert torch.equal(later.batches, order.batches)
    with pytest.raises(ValueError, match="batch_size=5: the batches that are trained on again have 4 samples"):
        HardBatches(5).load_state_dict(state)


def test_an_epoch_without_known_losses_has_all_batches():
    assert len(HardBatches(4)(23, 7, torch.Generator())) == 20


def test_refusals():
    for delta in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\], got"):
            HardBatches(4, delta=delta)
    with pytest.raises(ValueError, match=r"losses must be one number per batch, \[M\], got shape \(2, 3\)"):
        hardest_batches(torch.zeros(2, 3))
