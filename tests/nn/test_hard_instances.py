import math

import pytest
import torch

from leyden.nn import hard_instance_keep, hard_instance_mask, instance_class_scores

SCORES = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5, 0.2, 0.8, 0.4, 0.6, 0.0])


def wave(*shape, phase):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).view(shape)


def test_scores_of_the_authors_code():
    attention = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    weight = wave(2, 3, phase=0.2)
    # get_pseudo_score of DearCaat/MHIM-MIL at 9d0c91a, modules/mhim_modules/scoring.py
    expected = [0.5424131398657803, 0.581729369702967, 0.5026431871707275, 0.6037803981953361, 0.5621539554950522]
    features = wave(5, 3, phase=0.6)
    scores = instance_class_scores(features, attention, weight)
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)
    shifted = instance_class_scores(features, attention, weight + wave(1, 3, phase=2.0))
    assert torch.allclose(shifted, scores)


def test_scores_of_16_bits_differ():
    features, attention = torch.linspace(1.0, 2.0, 50)[:, None], torch.full((50,), 0.02)
    with torch.autocast("cpu", torch.bfloat16):
        scores = instance_class_scores(features, attention, torch.tensor([[1.0], [-1.0]]))
    assert len(scores.unique()) > 40


def test_the_highest_and_the_lowest_go():
    assert hard_instance_keep(SCORES, high_ratio=0.0).tolist() == list(range(10))
    # select_mask_fn of DearCaat/MHIM-MIL at 9d0c91a, modules/mhim_modules/masking.py: all but 1, 6, 3
    assert hard_instance_keep(SCORES, high_ratio=0.25).tolist() == [0, 2, 4, 5, 7, 8, 9]
    assert hard_instance_keep(SCORES, high_ratio=0.15, low_ratio=0.2).tolist() == [0, 3, 4, 5, 7, 8]


def test_random_shares():
    removed = torch.zeros(10, dtype=torch.bool)
    for seed in range(30):
        gone = ~hard_instance_mask(SCORES[None], keys=torch.tensor([seed]), high_ratio=0.2, high_random=0.5)[0]
        assert gone.sum() == 2
        assert set(gone.nonzero()[:, 0].tolist()) <= {1, 6, 3, 8}
        removed |= gone
    assert removed.sum() == 4
    # a pool of more than the bag: the whole of it, and high_ratio of that
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        assert hard_instance_keep(SCORES, high_ratio=0.6, high_random=0.5, generator=generator).shape == (4,)
        generator.manual_seed(seed)
        assert hard_instance_keep(SCORES, high_ratio=0.0, random_ratio=0.55, generator=generator).shape == (
            10 - math.ceil(5.5),
        )


def test_heads_vote():
    heads = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.8, 0.1, 0.9, 0.0], [0.1, 0.9, 0.8, 0.0], [0.9, 0.8, 0.1, 0.0]])
    # two votes of each: 3, 3, 2, 0; the authors' code keeps the same
    assert hard_instance_keep(heads, high_ratio=0.5).tolist() == [2, 3]
    bags = torch.stack([heads, heads.flip(-1)])
    kept = hard_instance_mask(bags, keys=torch.arange(2), high_ratio=0.5)
    assert kept.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_one_instance_stays():
    assert hard_instance_keep(SCORES, high_ratio=1.0).tolist() == [9]
    assert hard_instance_keep(torch.tensor([0.5]), high_ratio=0.01).tolist() == [0]


@pytest.mark.parametrize("ratios", [{"low_ratio": 0.2}, {"random_ratio": 0.3}, {"high_random": 0.5}])
def test_bags_of_a_batch_are_masked_as_alone(ratios):
    keys, ratios = torch.tensor([5, 6, 7]), {"high_ratio": 0.25} | ratios
    scores = torch.stack([SCORES, SCORES.flip(0), SCORES.roll(3)])
    sizes = torch.tensor([10, 4, 7])
    mask = torch.arange(10) < sizes[:, None]
    kept = hard_instance_mask(scores, mask, keys=keys, **ratios)
    assert not (kept & ~mask).any()
    for row, size in enumerate(sizes.tolist()):
        alone = hard_instance_mask(scores[row : row + 1, :size], keys=keys[row : row + 1], **ratios)
        assert torch.equal(kept[row, :size], alone[0])


def test_no_number_leaves_the_device():
    scores, keys = torch.empty(2, 9, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    kept = hard_instance_mask(scores, keys=keys, high_ratio=0.2, low_ratio=0.1, random_ratio=0.3, high_random=0.5)
    assert kept.shape == (2, 9)  # what has no numbers can be asked for none


@pytest.mark.parametrize(
    ("scores", "knobs", "message"),
    [
        (SCORES, {"high_ratio": 1.1}, r"high_ratio must lie in \[0, 1\], got 1.1"),
        (SCORES, {"high_ratio": 0.1, "high_random": 0.0}, "high_random must be above 0"),
        (SCORES[:0], {"high_ratio": 0.1}, r"scores must be \[B, N\] or \[B, H, N\] with an instance .* got \(1, 0\)"),
    ],
)
def test_bad_arguments(scores, knobs, message):
    with pytest.raises(ValueError, match=message):
        hard_instance_keep(scores, **knobs)


def test_scores_need_attention_of_each_instance():
    with pytest.raises(ValueError, match=r"attention \[..., N\], got \(5, 3\) and \(4,\)"):
        instance_class_scores(torch.ones(5, 3), torch.ones(4), torch.ones(2, 3))
