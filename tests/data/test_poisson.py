import pytest
import torch

from leyden.data import PoissonBatchSampler, Sequential


def batches(sampler):
    return [indices for _, indices in sampler]


def test_every_sample_on_its_own():
    sampler = PoissonBatchSampler(200, 10, seed=3)
    seen, sizes = torch.zeros(200), []
    for epoch in range(100):
        sampler.set_epoch(epoch)
        drawn = batches(sampler)
        assert len(drawn) == len(sampler) == 20
        for indices in drawn:
            assert indices == sorted(set(indices))
            seen[indices] += 1
            sizes.append(len(indices))
    sizes = torch.tensor(sizes, dtype=torch.float64)
    assert sizes.mean().item() == pytest.approx(10.0, abs=0.3)  # 2,000 steps: standard error 0.07
    assert sizes.var().item() == pytest.approx(200 * 0.05 * 0.95, rel=0.15)
    assert seen.mean().item() == pytest.approx(100.0, abs=3.0)
    assert seen.std().item() == pytest.approx((2000 * 0.05 * 0.95) ** 0.5, rel=0.2)


@pytest.mark.parametrize(("num_replicas", "accumulate"), [(1, 2), (2, 1), (2, 5)])
def test_pieces_make_the_whole_step(num_replicas, accumulate):
    whole = batches(PoissonBatchSampler(60, 10, seed=1))
    shares = [
        batches(PoissonBatchSampler(60, 10, seed=1, num_replicas=num_replicas, rank=rank, accumulate=accumulate))
        for rank in range(num_replicas)
    ]
    assert {len(share) for share in shares} == {6 * accumulate}
    for step, indices in enumerate(whole):
        pieces = [share[micro] for micro in range(step * accumulate, (step + 1) * accumulate) for share in shares]
        assert [index for piece in pieces for index in piece] == indices


@pytest.mark.parametrize("cut", [0, 1, 3, 5, 11])
def test_goes_on_from_any_micro_batch(cut):
    def fresh():
        return PoissonBatchSampler(60, 10, seed=1, accumulate=2)

    whole = fresh()
    whole.set_epoch(2)
    expected = list(whole)
    first = fresh()
    first.set_epoch(2)
    first.begin()
    for _ in range(cut):
        first.advance()
    second = fresh()
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    second.begin()
    assert list(second) == expected[cut:]
    assert len(second) == 12
    for _ in range(12 - cut):
        assert not second.exhausted
        second.advance()
    assert second.exhausted


def test_goes_on_with_another_number_of_processes():
    one = PoissonBatchSampler(60, 10, seed=1)
    one.begin()
    one.advance()
    two = [PoissonBatchSampler(60, 10, seed=1, num_replicas=2, rank=rank) for rank in range(2)]
    for sampler in two:
        sampler.load_state_dict(one.state_dict())
        sampler.begin()
    rest = [a + b for a, b in zip(*(batches(sampler) for sampler in two), strict=True)]
    assert rest == batches(PoissonBatchSampler(60, 10, seed=1))[1:]


def test_bad_input():
    with pytest.raises(ValueError, match="order: the batches of Poisson sampling are drawn anew"):
        PoissonBatchSampler(60, 10, order=Sequential())
    with pytest.raises(ValueError, match=r"batch_size must lie in 1..60 \(the training samples\), got 61"):
        PoissonBatchSampler(60, 61, drop_last=False)
    sampler = PoissonBatchSampler(60, 10)
    assert sampler.sample_rate == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="batch size of Poisson sampling is fixed"):
        sampler.batch_size = 20
    with pytest.raises(ValueError, match="with batch_size=10: the run was begun with 20"):
        sampler.load_state_dict(PoissonBatchSampler(60, 20).state_dict())
