import itertools

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.data import (
    MultigridBatchSampler,
    Sequential,
    multigrid_schedule,
    resample_grid,
    short_cycle_batch_sizes,
)


def test_schedule_of_the_authors_for_kinetics():
    # printed by slowfast/utils/multigrid.py of facebookresearch/SlowFast for SLOWFAST_8x8_R50_stepwise_multigrid.yaml
    schedule = multigrid_schedule([94, 154, 196], 239, (32, 224))
    shapes = [(8, (8, 158)), (4, (16, 158)), (2, (16, 224)), (1, (32, 224))]
    ends = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329, 358]
    steps = [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert [phase.step for phase in schedule.phases] == steps
    assert [(phase.batch_factor, phase.shape) for phase in schedule.phases] == shapes * 3 + shapes[-1:]
    assert [phase.end_epoch for phase in schedule.phases] == ends
    assert schedule.lr_milestones == [0, *ends[:-1], 343]
    factors = [8, 4, 2, 1, 0.8, 0.4, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01, 0.01, 0.001]
    assert schedule.lr_factors == pytest.approx(factors)
    # and by its functions for single epochs
    assert [schedule.lr_factor(epoch) for epoch in (0, 72, 73, 342, 343, 400)] == pytest.approx(
        [8, 8, 4, 0.01, 0.001, 0.001]
    )
    assert [schedule.phase(epoch).shape for epoch in (72, 73, 357, 400)] == [
        (8, 158),
        (16, 158),
        (32, 224),
        (32, 224),
    ]


def test_schedule_of_the_authors_for_images():
    # printed by the same code with LONG_CYCLE_FACTORS (1, 0.5), (1, 0.5**0.5), (1, 1)
    factors = [(1.0, 0.5), (1.0, 0.5**0.5), (1.0, 1.0)]
    schedule = multigrid_schedule([8, 14], 18, (1, 28), long_factors=factors)
    assert [(*phase[:2], phase.shape[1], phase.end_epoch) for phase in schedule.phases] == [
        (0, 4, 14, 5),
        (0, 2, 20, 9),
        (0, 1, 28, 12),
        (1, 4, 14, 16),
        (1, 2, 20, 19),
        (1, 1, 28, 22),
        (2, 1, 28, 27),
    ]
    assert schedule.lr_milestones == [0, 5, 9, 12, 16, 19, 22, 24]
    assert schedule.lr_factors == pytest.approx([4, 2, 1, 0.4, 0.2, 0.1, 0.1, 0.01])


def test_one_grid_is_usual_training_whose_last_drop_comes_later():
    schedule = multigrid_schedule([6, 9], 12, (1, 8), long_factors=[(1, 1)], short_factors=(), epoch_factor=1)
    assert [phase.end_epoch for phase in schedule.phases] == [6, 9, 12]
    assert schedule.lr_milestones == [0, 6, 9, 10]
    assert [round(schedule.lr_factor(epoch), 9) for epoch in (5, 6, 8, 9, 10, 11)] == [1, 0.1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("shape", [(1, 32), (8, 20), (32, 224)])
def test_batches_of_all_grids_cost_about_the_same(shape):
    for _, factor, (t, s), _ in multigrid_schedule([2], 4, shape).phases:
        assert factor * t * s**2 == pytest.approx(shape[0] * shape[1] ** 2, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"milestones": []}, "milestones must be one or more growing epochs"),
        ({"milestones": [2, 2]}, r"milestones must be .* in 1..3 \(below max_epochs\), got \[2, 2\]"),
        ({"milestones": [4]}, "milestones must be"),
        ({"shape": (0, 8)}, r"shape must be \(frames, side\), both at least 1, got \(0, 8\)"),
        ({"long_factors": []}, "long_factors must name at least one grid"),
        ({"long_factors": [(1.0, 2.0)]}, r"long_factors must lie in \(0, 1\]"),
        ({"short_factors": [0.0]}, r"short_factors must lie in \(0, 1\], got \[0.0\]"),
        ({"epoch_factor": 0.0}, "epoch_factor must be positive"),
    ],
)
def test_bad_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        multigrid_schedule(**({"milestones": [2], "max_epochs": 4, "shape": (1, 8)} | change))


def test_short_cycle_of_the_authors():
    # printed by slowfast/datasets/multigrid_helper.py of the same repository
    assert short_cycle_batch_sizes(3, 224, 224) == [12, 6, 3]
    assert short_cycle_batch_sizes(3, 158, 224) == [6, 3, 3]
    assert short_cycle_batch_sizes(3, 158, 224, factors=()) == [3]
    with pytest.raises(ValueError, match="finer than the long cycle's, of side 100, but 0.7 of 224 is"):
        short_cycle_batch_sizes(3, 100, 224, factors=[0.7])


def steps(sampler):
    """Size and place of each step of the epoch, as a loader sees them."""
    sampler.begin()
    seen = []
    while not sampler.exhausted:
        _, indices = next(iter(sampler))
        sampler.advance()
        seen.append((len(indices), sampler.place))
    return seen


def test_sampler_gives_the_batches_of_the_authors():
    # printed by the same code for 50 samples; its length of the first was 8
    fine = MultigridBatchSampler(50, 3, batch_sizes=[(1, [12, 6, 3]), (2, [6, 3, 3])], drop_last=False)
    assert steps(fine) == [(12, 0), (6, 1), (3, 2), (12, 0), (6, 1), (3, 2), (8, 0)]
    assert len(fine) == 7
    fine.set_epoch(1)
    coarse = [(6, 0), (3, 1), (3, 2)] * 4 + [(2, 0)]
    assert steps(fine) == coarse
    fine.set_epoch(7)
    assert steps(fine) == coarse  # the last sizes stay


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_samples", [21, 33, 40, 42, 50])
def test_every_sample_comes_once_and_the_length_is_exact(num_samples, drop_last):
    sampler = MultigridBatchSampler(num_samples, 3, batch_sizes=[(1, [12, 6, 3])], drop_last=drop_last)
    batches = [indices for _, indices in sampler]
    assert len(batches) == len(sampler) == len(steps(sampler))
    seen = list(itertools.chain(*batches))
    assert len(set(seen)) == len(seen)
    dropped = num_samples - len(seen)
    assert dropped < [12, 6, 3][len(batches) % 3] if drop_last else dropped == 0


@pytest.mark.parametrize(("num_replicas", "accumulate"), [(1, 2), (2, 1), (2, 2)])
def test_any_layout_makes_the_same_steps_and_resumes_at_each(num_replicas, accumulate):
    def make(rank=0, num_replicas=1, accumulate=1):
        sampler = MultigridBatchSampler(
            60,
            4,
            batch_sizes=[(2, [8, 4]), (4, [16, 8, 4])],
            num_replicas=num_replicas,
            rank=rank,
            accumulate=accumulate,
        )
        sampler.set_epoch(3)
        return sampler

    whole = [indices for _, indices in make()]
    assert [len(indices) for indices in whole] == [16, 8, 4, 16, 8, 4]
    group = [make(rank, num_replicas, accumulate) for rank in range(num_replicas)]
    for cut in range(len(whole) + 1):
        pieces = list(itertools.chain(*zip(*([indices for _, indices in sampler] for sampler in group), strict=True)))
        parts = num_replicas * accumulate
        rest = [list(itertools.chain(*pieces[i : i + parts])) for i in range(0, len(pieces), parts)]
        assert rest == whole[cut:]
        resumed = make()
        resumed.load_state_dict(group[0].state_dict())
        resumed.begin()
        assert [indices for _, indices in resumed] == whole[cut:]
        assert len(resumed) == len(whole)
        for sampler in group:
            for _ in range(accumulate if cut < len(whole) else 0):
                sampler.advance()
        assert cut == len(whole) or {sampler.place for sampler in group} == {cut % 3}


@pytest.mark.parametrize(
    ("batch_sizes", "kwargs", "message"),
    [
        ([(1, [6, 3])], {"accumulate": 2}, "batch_sizes must be multiples of 2, .* by 1 processes x 2 .*, got 3"),
        ([(1, [0])], {}, "batch_sizes must be multiples of 1, .* got 0"),
        ([(1, [4]), (2, [64, 4])], {}, r"the first of \[64, 4\] is larger than the 50 training samples"),
        ([(1, [8, 4])], {"accumulate": 4, "drop_last": False}, "the last batch of 50 samples .* set drop_last=True"),
    ],
)
def test_bad_sizes(batch_sizes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultigridBatchSampler(50, 4, batch_sizes=batch_sizes, **kwargs)


def test_sizes_cannot_be_set():
    sampler = MultigridBatchSampler(50, 4, batch_sizes=[(1, [8, 4])], order=Sequential())
    with pytest.raises(MisconfigurationException, match="are those of its schedule"):
        sampler.batch_size = 8


def test_resampled_images_and_videos():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    halved = resample_grid(ramp, (1, 4))
    # the antialiased triangle of width 2 weighs the 4 nearest columns by 1, 3, 3, 1; at the edge the 3 that there are
    edge = (3 * 0 + 3 * 1 + 1 * 2) / 7
    torch.testing.assert_close(halved[0, 0, 0], torch.tensor([edge, 2.5, 4.5, 7 - edge]))
    assert resample_grid(ramp, (1, 8)) is ramp

    video = torch.randn(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = resample_grid(video, (4, 4))
    assert coarse.shape == (2, 3, 4, 4, 4)
    for place, frame in enumerate([0, 2, 4, 6]):
        torch.testing.assert_close(coarse[:, :, place], resample_grid(video[:, :, frame], (1, 4)))


@pytest.mark.parametrize(
    ("input", "shape", "message"),
    [
        (torch.zeros(2, 8, 8), (1, 4), r"input must be images .*, got shape \(2, 8, 8\)"),
        (torch.zeros(2, 1, 3, 8, 8), (4, 4), "shape must have at most the 3 frames of the input, got 4"),
    ],
)
def test_bad_inputs(input, shape, message):
    with pytest.raises(ValueError, match=message):
        resample_grid(input, shape)
