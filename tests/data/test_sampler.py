import itertools

import pytest
import torch

from leyden.data import GlobalBatchSampler, Order, Sequential, Shuffled, Weighted, eval_batches


def samplers(num_replicas=1, num_samples=48, batch_size=8, **kwargs):
    return [
        GlobalBatchSampler(num_samples, batch_size, num_replicas=num_replicas, rank=rank, **kwargs)
        for rank in range(num_replicas)
    ]


def micro_batches(sampler):
    """Plays the loader to the end of the epoch, one micro-batch after the other."""
    batches = []
    while not sampler.exhausted:
        batches.append(next(iter(sampler))[1])
        sampler.advance()
    return batches


def steps(shares, accumulate=1):
    """Global batch of each optimizer step: the pieces of a micro-batch by rank, then the next micro-batch."""
    pieces = [list(itertools.chain(*micro)) for micro in zip(*shares, strict=True)]
    assert len(pieces) % accumulate == 0
    return [list(itertools.chain(*pieces[i : i + accumulate])) for i in range(0, len(pieces), accumulate)]


def epoch_steps(group):
    for sampler in group:
        sampler.begin()
    return steps([micro_batches(sampler) for sampler in group], group[0].accumulate)


@pytest.mark.parametrize("order", [None, Sequential()])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_sample_comes_once_per_epoch(order, epoch):
    (sampler,) = samplers(order=order)
    sampler.set_epoch(epoch)
    batches = micro_batches(sampler)
    assert [len(batch) for batch in batches] == [8] * 6
    assert sorted(itertools.chain(*batches)) == list(range(48))


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    def order(seed, epoch, rest=None):
        sampler = GlobalBatchSampler(48, 8, seed=seed)
        for earlier in rest or []:
            sampler.set_epoch(earlier)
            micro_batches(sampler)
        sampler.set_epoch(epoch)
        torch.manual_seed(seed + epoch)  # the global generator has no part in it
        return list(itertools.chain(*micro_batches(sampler)))

    assert order(1, 2) == order(1, 2, rest=[0, 1]) == order(1, 2, rest=[5])
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    micro_batches(GlobalBatchSampler(48, 8))
    micro_batches(GlobalBatchSampler(48, 8, order=Weighted(torch.ones(48))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize(("num_samples", "drop_last"), [(50, True), (48, True), (56, False)])
def test_any_layout_makes_the_same_global_batches(num_samples, drop_last, num_replicas, accumulate):
    layout = {"num_samples": num_samples, "batch_size": 16, "drop_last": drop_last}
    expected = epoch_steps(samplers(**layout))
    got = epoch_steps(samplers(num_replicas, accumulate=accumulate, **layout))
    assert got == expected  # the same samples, in the same order
    assert [len(step) for step in got] == [16, 16, 16] + ([] if drop_last else [8])


def test_micro_batch_m_of_rank_r_is_piece_m_times_replicas_plus_r():
    group = samplers(2, num_samples=8, batch_size=8, accumulate=2, order=Sequential())
    assert [micro_batches(sampler) for sampler in group] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_cut_at_every_position_and_resumed(drop_last, accumulate):
    def make():
        return GlobalBatchSampler(52, 8, accumulate=accumulate, drop_last=drop_last, seed=3)

    whole = make()
    whole.set_epoch(2)
    whole.begin()
    expected = micro_batches(whole)
    whole.set_epoch(3)
    next_epoch = micro_batches(whole)
    for cut in range(len(expected) + 1):
        first = make()
        first.set_epoch(2)
        first.begin()
        head = []
        for _ in range(cut):
            head.append(next(iter(first))[1])
            first.advance()
        second = make()
        second.load_state_dict(first.state_dict())
        second.set_epoch(2)
        second.begin()
        assert len(second) == len(expected)
        assert head + micro_batches(second) == expected
        second.set_epoch(3)
        second.begin()
        assert micro_batches(second) == next_epoch


@pytest.mark.parametrize("after", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("before", [(1, 1), (4, 1), (2, 2)])
def test_resumed_in_another_layout_at_every_step(before, after):
    expected = epoch_steps(samplers())
    for cut in range(7):
        group = samplers(before[0], accumulate=before[1])
        for sampler in group:
            for _ in range(cut * before[1]):
                sampler.advance()
        states = [sampler.state_dict() for sampler in group]
        assert all(state == states[0] for state in states)  # whichever process saves it
        group = samplers(after[0], accumulate=after[1])
        for sampler in group:
            sampler.load_state_dict(states[0])
            assert len(sampler) == 6 * after[1]
        assert epoch_steps(group) == expected[cut:]


def test_other_accumulation_within_a_step_is_refused():
    sampler = GlobalBatchSampler(48, 8, accumulate=2)
    sampler.advance()
    with pytest.raises(ValueError, match=r"with accumulate=1: it was begun with accumulate=2"):
        GlobalBatchSampler(48, 8).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize(
    ("drop_last", "new_size", "sizes"),
    [
        (True, 4, [8, 8] + [4] * 8),
        (True, 16, [8, 8, 16, 16]),
        (True, 12, [8, 8, 12, 12]),
        (False, 12, [8, 8, 12, 12, 12, 2]),
        (False, 48, [8, 8, 38]),
        (True, 48, [8, 8]),
    ],
)
def test_resize_between_steps(drop_last, new_size, sizes):
    num_samples = 54 if not drop_last else 48
    sampler = GlobalBatchSampler(num_samples, 8, drop_last=drop_last)
    order = list(itertools.chain(*micro_batches(GlobalBatchSampler(num_samples, 8, drop_last=False))))
    seen = []
    assert len(sampler) == (7 if not drop_last else 6)
    for _ in range(2):
        seen.append(next(iter(sampler))[1])
        sampler.advance()
    version = sampler.version
    sampler.batch_size = new_size
    assert sampler.batch_size == new_size
    assert sampler.version > version
    assert len(sampler) == len(sizes)
    seen += micro_batches(sampler)
    assert len(sampler) == len(sizes)
    assert [len(batch) for batch in seen] == sizes
    assert list(itertools.chain(*seen)) == order[: sum(sizes)]


def test_the_new_size_stays_in_the_next_epoch():
    sampler = GlobalBatchSampler(48, 8)
    sampler.advance()
    sampler.batch_size = 16
    micro_batches(sampler)
    sampler.set_epoch(1)
    sampler.begin()
    assert len(sampler) == 3
    assert [len(batch) for batch in micro_batches(sampler)] == [16, 16, 16]


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_resize_within_an_accumulated_step_holds_from_the_next(num_replicas):
    group = samplers(num_replicas, accumulate=2)
    shares = [[] for _ in group]
    for share, sampler in zip(shares, group, strict=True):
        share.append(next(iter(sampler))[1])
        sampler.advance()
        sampler.batch_size = 16
        assert sampler.batch_size == 8  # that of the step which has begun
        share += micro_batches(sampler)
        assert sampler.batch_size == 16
    got = steps(shares, accumulate=2)
    order = list(itertools.chain(*epoch_steps(samplers())))
    assert [len(step) for step in got] == [8, 16, 16]
    assert list(itertools.chain(*got)) == order[:40]


def test_accumulation_changes_between_steps():
    sampler = GlobalBatchSampler(48, 8, order=Sequential())
    for _ in range(2):
        sampler.advance()
    sampler.resize(16, 2)
    assert len(sampler) == 8  # 4 steps, the first two counted as if they had been accumulated
    assert micro_batches(sampler) == [list(range(start, start + 8)) for start in range(16, 48, 8)]
    sampler.resize(12, 3)
    sampler.set_epoch(1)
    sampler.begin()
    assert len(sampler) == 12
    assert [len(batch) for batch in micro_batches(sampler)] == [4] * 12


def test_accumulation_does_not_change_within_a_step():
    sampler = GlobalBatchSampler(48, 8, accumulate=2)
    sampler.advance()
    with pytest.raises(ValueError, match="accumulate can only change between two optimizer steps"):
        sampler.resize(8, 4)
    with pytest.raises(ValueError, match="batch_size=12 cannot be shared equally by 1 processes x 5 accumulated"):
        sampler.resize(12, 5)
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        sampler.resize(8, 0)
    assert (sampler.batch_size, sampler.accumulate) == (8, 2)


@pytest.mark.parametrize(("new_size", "length"), [(16, 2 * 3), (4, 2 * 11)])
def test_len_counts_a_resize_to_come(new_size, length):
    sampler = GlobalBatchSampler(48, 8, accumulate=2)
    sampler.advance()
    sampler.batch_size = new_size
    assert len(sampler) == length
    sampler.advance()
    assert len(sampler) == length


@pytest.mark.parametrize("typed", [8, 24])
def test_cut_within_a_step_with_a_resize_to_come(typed):
    def begun(new_size):
        sampler = GlobalBatchSampler(48, 8, accumulate=2)
        sampler.advance()
        sampler.batch_size = new_size
        return sampler

    resumed = GlobalBatchSampler(48, typed, accumulate=2)
    resumed.load_state_dict(begun(16).state_dict())
    resumed.begin()
    assert micro_batches(resumed) == micro_batches(begun(16 if typed == 8 else 24))


@pytest.mark.parametrize("cut", range(5))
def test_a_resize_is_saved(cut):
    def play(sampler, position):
        if position == 2:
            sampler.batch_size = 16
        batch = next(iter(sampler))[1]
        sampler.advance()
        return batch

    whole, first, second = (GlobalBatchSampler(48, 8) for _ in range(3))
    expected = [play(whole, position) for position in range(4)]
    got = [play(first, position) for position in range(min(cut, 4))]
    second.load_state_dict(first.state_dict())
    second.begin()
    if cut > 2:
        assert second.batch_size == 16
    assert got + [play(second, position) for position in range(cut, 4)] == expected
    assert second.exhausted


def test_a_typed_batch_size_wins_over_the_saved_one():
    first = GlobalBatchSampler(48, 8)
    first.advance()
    first.batch_size = 4  # by the schedule of the run
    first.advance()
    same, other = GlobalBatchSampler(48, 8), GlobalBatchSampler(48, 12)
    for sampler in (same, other):
        sampler.load_state_dict(first.state_dict())
        sampler.begin()
    assert [len(batch) for batch in micro_batches(same)] == [4] * 9
    assert [len(batch) for batch in micro_batches(other)] == [12] * 3
    again = GlobalBatchSampler(48, 12)  # the typed size is now the first one
    other.batch_size = 6
    again.load_state_dict(other.state_dict())
    assert again.batch_size == 6


@pytest.mark.parametrize(("name", "change"), [("num_samples", {"num_samples": 40}), ("seed", {"seed": 1})])
def test_another_order_cannot_go_on_within_an_epoch(name, change):
    first = GlobalBatchSampler(48, 8)
    first.advance()
    second = GlobalBatchSampler(**{"num_samples": 48, "batch_size": 8, **change})
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=f"cannot resume within an epoch: .* {name}="):
        second.begin()


@pytest.mark.parametrize("change", [{"num_samples": 40}, {"seed": 1}])
def test_another_order_can_go_on_between_epochs(change):
    first = GlobalBatchSampler(48, 8)
    micro_batches(first)
    second, fresh = (GlobalBatchSampler(**{"num_samples": 48, "batch_size": 8, **change}) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for sampler in (second, fresh):
        sampler.set_epoch(1)
        sampler.begin()
    assert micro_batches(second) == micro_batches(fresh)


def test_weighted_draws_with_replacement_and_never_a_weight_of_zero():
    weights = [0.0, 1.0, 3.0, 0.0]
    sampler = GlobalBatchSampler(4000, 4000, order=Weighted(weights * 1000))
    (batch,) = micro_batches(sampler)
    counts = torch.bincount(torch.tensor(batch) % 4, minlength=4)
    assert counts[0] == counts[3] == 0
    assert len(batch) == 4000
    assert len(set(batch)) < 2000  # some twice
    assert counts[2].item() == pytest.approx(3000, abs=110)  # 4 standard deviations
    assert micro_batches(GlobalBatchSampler(4000, 4000, order=Weighted(weights * 1000))) == [batch]


def test_weighted_needs_one_weight_per_sample():
    with pytest.raises(ValueError, match="weights has 3 entries, but there are 4 training samples"):
        len(GlobalBatchSampler(4, 2, order=Weighted([1.0, 2.0, 3.0])))


class Half(Order):
    """Visits the even samples only."""

    def __call__(self, num_samples, epoch, generator):
        return 2 * torch.randperm(num_samples // 2, generator=generator)


def test_an_order_may_have_another_length():
    sampler = GlobalBatchSampler(48, 8, order=Half())
    assert len(sampler) == 3
    assert sorted(itertools.chain(*micro_batches(sampler))) == list(range(0, 48, 2))


class Moody(Order):
    """Depends on more than its arguments."""

    pure = False

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, num_samples, epoch, generator):
        return torch.arange(num_samples).roll(self.shift)


def test_the_indices_of_an_order_with_state_are_saved():
    first = GlobalBatchSampler(48, 8, order=Moody(5))
    first.advance()
    state = first.state_dict()
    rest = micro_batches(first)
    second = GlobalBatchSampler(48, 8, order=Moody(11))  # what it would say now
    second.load_state_dict(state)
    second.begin()
    assert micro_batches(second) == rest
    second.set_epoch(1)
    assert micro_batches(second)[0] == [(i - 11) % 48 for i in range(8)]
    assert "indices" not in GlobalBatchSampler(48, 8).state_dict()


def test_micro_batch_seeds_depend_on_samples_epoch_and_seed_only():
    def seeds(**kwargs):
        sampler = GlobalBatchSampler(48, 8, **kwargs)
        return [seed for seed, _ in sampler]

    assert seeds() == seeds()
    assert len(set(seeds() + seeds(seed=1))) == 12
    assert seeds(num_replicas=2, rank=0) == seeds()  # both start with the same sample
    assert not set(seeds(num_replicas=2, rank=1)) & set(seeds())


def test_iterating_changes_nothing():
    sampler = GlobalBatchSampler(48, 8)
    state = sampler.state_dict()
    assert len(list(sampler)) == len(sampler) == 6
    assert sampler.state_dict() == state
    assert not sampler.exhausted


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"batch_size must lie in 1\.\.48 \(the training samples\), got 0", {"batch_size": 0}),
        (r"batch_size must lie in 1\.\.48 \(the training samples\), got 49", {"batch_size": 49}),
        (r"batch_size=9 cannot be shared equally by 2 processes x 1", {"batch_size": 9, "num_replicas": 2}),
        (r"batch_size=10 .* 2 processes x 2 .* multiple of 4", {"batch_size": 10, "num_replicas": 2, "accumulate": 2}),
        (
            r"the last batch of 1 samples cannot be shared .* 2 processes .* \(or set drop_last=True\)",
            {"num_samples": 49, "num_replicas": 2, "drop_last": False},
        ),
    ],
)
def test_bad_sizes_are_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(**{"num_samples": 48, "batch_size": 8, **arguments})


def test_a_bad_resize_is_refused_and_changes_nothing():
    sampler = GlobalBatchSampler(48, 8, num_replicas=2)
    for size in (0, 49, 7):
        with pytest.raises(ValueError, match="batch_size"):
            sampler.batch_size = size
    assert len(sampler) == 6
    assert sampler.batch_size == 8


def test_a_saved_size_must_fit_the_new_layout():
    first = GlobalBatchSampler(48, 8)
    first.batch_size = 6
    with pytest.raises(ValueError, match="batch_size=6 cannot be shared equally by 4 processes"):
        GlobalBatchSampler(48, 8, num_replicas=4).load_state_dict(first.state_dict())


def test_without_drop_last_a_batch_may_be_the_whole_set():
    (batch,) = micro_batches(GlobalBatchSampler(5, 64, drop_last=False))
    assert sorted(batch) == list(range(5))


def test_orders_as_functions():
    generator = torch.Generator().manual_seed(0)
    assert Sequential()(4, 0, generator).tolist() == [0, 1, 2, 3]
    assert Shuffled()(100, 0, generator).sort().values.tolist() == list(range(100))


def test_eval_batches_cover_exactly_in_any_layout():
    sizes = [*range(1, 40), 97, 128]
    for num_samples, batch_size, num_replicas in itertools.product(sizes, range(1, 20, 3), range(1, 6)):
        if num_samples < num_replicas:
            continue
        shares = [eval_batches(num_samples, batch_size, num_replicas, rank) for rank in range(num_replicas)]
        assert len({len(share) for share in shares}) == 1
        seen = [batch for micro in zip(*shares, strict=True) for batch in micro]
        assert list(itertools.chain(*seen)) == list(range(num_samples))
        lengths = [len(batch) for batch in seen]
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1
        # a share of the batch; where that would leave a process without a sample, up to two
        few = num_replicas * -(-num_samples // batch_size) > num_samples
        assert max(lengths) <= (2 if few else -(-batch_size // num_replicas))


def test_eval_batches_need_a_sample_per_process():
    with pytest.raises(ValueError, match="3 samples cannot be shared by 4 processes"):
        eval_batches(3, 8, num_replicas=4)


class Few(Order):
    """The first three samples."""

    def __call__(self, num_samples, epoch, generator):
        return torch.arange(3)


def test_an_order_has_a_whole_batch_and_equal_shares():
    with pytest.raises(ValueError, match="batch_size must be at most the 3 samples that Few has in epoch 0, got 4"):
        len(GlobalBatchSampler(48, 4, order=Few()))
    for layout in ({"num_replicas": 2}, {"accumulate": 2}):
        with pytest.raises(ValueError, match="the 3 samples that Few has in epoch 0 cannot be shared equally by"):
            len(GlobalBatchSampler(48, 4, order=Few(), drop_last=False, **layout))
    assert micro_batches(GlobalBatchSampler(48, 4, order=Few(), drop_last=False)) == [[0, 1, 2]]
