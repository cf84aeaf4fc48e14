import math
import statistics

import pytest
import torch

from leyden.optim import LinearDecayLR, RefinedLR, refined_schedule, smooth_grad_norms

NORMS = [4.0, 2.0, 1.0, 1.25, 0.8, 1.0, 1.6, 2.5]


def noisy_norms(steps=30):
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return 2.0 + torch.sin(1.7 * t) + 3.0 * torch.exp(-t / 4.0)


def rates(kind, steps, lr=1.0, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = kind(optimizer, **arguments)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


# ---- the schedule


def test_numbers_by_hand():
    # weights 1/4, 1, 1/16: sums of later ones 17/16, 1/16, 0; products 17/64, 1/16, 0
    assert refined_schedule([2.0, 1.0, 4.0]).tolist() == pytest.approx([1.0, 4 / 17, 0.0])


def test_numbers_of_the_authors_code():
    # facebookresearch/adaptive_scheduling: find_closed_form_schedule(NORMS), and with weights=1/NORMS
    expected = [1.954345703125, 7.4267578125, 23.45703125, 12.4525, 15.142822265625, 3.44140625, 0.390625, 0.0]
    assert refined_schedule(NORMS).tolist() == pytest.approx([e / 23.45703125 for e in expected], rel=1e-14)
    expected = [3.484375, 6.34375, 10.1875, 6.55, 6.328125, 2.5625, 0.625, 0.0]
    weights = torch.tensor(NORMS).reciprocal()
    adam = refined_schedule(NORMS, weights=weights)
    assert adam.tolist() == pytest.approx([e / 10.1875 for e in expected], rel=1e-7)
    torch.testing.assert_close(refined_schedule(torch.tensor(NORMS).double().sqrt()), adam, rtol=1e-7, atol=0.0)


def test_smoothed_numbers_of_the_authors_code():
    # the filter of visual.py, with nvals the number of norms, then find_closed_form_schedule, divided by the maximum
    smooth = smooth_grad_norms(noisy_norms(), tau=0.25)
    assert smooth[:6].tolist() == pytest.approx(
        [5.328067159667, 3.658001503204, 3.597751674653, 3.564050877111, 3.265167664566, 2.712938246816], rel=1e-11
    )
    assert smooth[-5:].tolist() == pytest.approx(
        [2.04812951388, 2.04812951388, 1.544410191405, 1.544410191405, 1.544410191405], rel=1e-11
    )
    schedule = refined_schedule(smooth)
    assert schedule[[0, 3, 7, 18, 28, 29]].tolist() == pytest.approx(
        [0.167902558015, 0.362343649898, 1.0, 0.785916535852, 0.124802105408, 0.0], rel=1e-11
    )


@pytest.mark.parametrize("tau", [0.0, 0.07, 0.3, 1.0])
def test_smoothing_is_a_median_of_sorted_windows(tau):
    norms = noisy_norms(20).tolist()
    half = int(tau * 20) // 2
    inside = [*norms, *norms[-2::-1], *norms[1:]]  # goes back and forth at the end
    expected = [
        statistics.median(inside[max(0, t + shift)] for shift in range(-half, half + 1)) for t in range(len(norms))
    ]
    assert smooth_grad_norms(norms, tau).tolist() == pytest.approx(expected)


def test_equal_norms_give_linear_decay():
    schedule = refined_schedule(torch.full((9,), 0.3))
    assert schedule.tolist() == pytest.approx([(8 - t) / 8 for t in range(9)])
    assert schedule[-1] == 0.0


def test_scale_of_the_norms_does_not_matter():
    for scale in (1e-200, 1e-3, 1e200):
        torch.testing.assert_close(refined_schedule(scale * noisy_norms()), refined_schedule(noisy_norms()))


def test_is_a_tail_sum_times_the_weights():
    norms = noisy_norms(200)
    schedule = refined_schedule(norms)
    assert (schedule >= 0.0).all()
    assert schedule.max() == 1.0
    assert ((schedule * norms.square()).diff() <= 1e-12).all()


def test_zero_counts_as_the_smallest_other():
    assert torch.equal(refined_schedule([2.0, 0.0, 1.0, 0.5]), refined_schedule([2.0, 0.5, 1.0, 0.5]))


def test_inputs_stay():
    norms = torch.tensor(NORMS, requires_grad=True)
    smooth_grad_norms(norms, 0.5)
    assert not refined_schedule(norms).requires_grad
    assert norms.tolist() == pytest.approx(NORMS)


@pytest.mark.parametrize(
    ("norms", "match"),
    [
        ([1.0], r"grad_norms must be two or more numbers in a row, got shape \(1,\)"),
        ([[1.0, 2.0]], "two or more numbers in a row"),
        ([1.0, -1.0], "finite, at least 0, and not all 0, got -1 to 1"),
        ([1.0, math.nan], "finite"),
        ([1.0, math.inf], "got 1 to inf"),
        ([0.0, 0.0], "not all 0"),
    ],
)
def test_bad_norms(norms, match):
    for function in (refined_schedule, smooth_grad_norms):
        with pytest.raises(ValueError, match=match):
            function(norms)


def test_bad_weights_and_tau():
    with pytest.raises(ValueError, match="weights must have the 2 entries of grad_norms, got 3"):
        refined_schedule([1.0, 2.0], weights=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="weights must have two entries above 0"):
        refined_schedule([1.0, 2.0], weights=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\], got 1.5"):
        smooth_grad_norms([1.0, 2.0], 1.5)


# ---- learning rates


def test_linear_decay():
    assert rates(LinearDecayLR, 6, total_steps=4) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    warm = rates(LinearDecayLR, 7, lr=6.0, total_steps=5, warmup_steps=2)
    assert warm == pytest.approx([2.0, 4.0, 6.0, 4.0, 2.0, 0.0, 0.0])
    assert rates(LinearDecayLR, 7, lr=6.0, total_steps=5, warmup_steps=0.5) == warm


def test_linear_decay_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=10)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(LinearDecayLR, 12, lr=0.3, total_steps=10) == pytest.approx(expected)


def test_refined_is_stretched_to_the_run():
    assert rates(RefinedLR, 4, total_steps=3, schedule=[0.25, 1.0, 0.0]) == [0.25, 1.0, 0.0, 0.0]
    longer = rates(RefinedLR, 6, lr=2.0, total_steps=5, schedule=torch.tensor([0.25, 1.0, 0.0]))
    assert longer == pytest.approx([0.5, 1.25, 2.0, 1.0, 0.0, 0.0])
    assert rates(RefinedLR, 2, total_steps=2, schedule=[0.25, 1.0, 0.5]) == [0.25, 0.5]
    assert rates(RefinedLR, 2, total_steps=1, schedule=[0.25, 1.0]) == [0.25, 0.25]


def test_refined_from_a_file(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("grad_norm,schedule\n3.0,0.5\n2.0,1.0\n1.0,0.0\n")
    assert rates(RefinedLR, 3, total_steps=3, schedule=str(path)) == [0.5, 1.0, 0.0]
    path.write_text("grad_norm\n3.0\n")
    with pytest.raises(ValueError, match="has no column 'schedule', only"):
        rates(RefinedLR, 1, total_steps=3, schedule=path)
    with pytest.raises(ValueError, match="there is no file nowhere.csv"):
        rates(RefinedLR, 1, total_steps=3, schedule="nowhere.csv")


@pytest.mark.parametrize(
    ("kind", "arguments", "match"),
    [
        (LinearDecayLR, {}, "total_steps must be at least 1, got None"),
        (LinearDecayLR, {"total_steps": 3, "warmup_steps": 3}, "warmup_steps must lie in 0..2, got 3"),
        (LinearDecayLR, {"total_steps": 3, "warmup_steps": 1.0}, r"warmup_steps must be a share in \[0.0, 1.0\)"),
        (RefinedLR, {"schedule": [1.0, 0.0]}, "total_steps must be at least 1, got None"),
        (RefinedLR, {"total_steps": 3, "schedule": [1.0]}, "schedule must be two or more numbers"),
        (RefinedLR, {"total_steps": 3, "schedule": [1.0, -1.0]}, "schedule must be finite, at least 0"),
    ],
)
def test_bad_arguments(kind, arguments, match):
    with pytest.raises(ValueError, match=match):
        rates(kind, 1, **arguments)
