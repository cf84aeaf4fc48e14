import pytest
import torch

from leyden.weights import dsnot_mask, wanda_mask

WEIGHT = torch.tensor(
    [
        [0.5, -0.2, 0.1, 0.4, -0.3, 0.6, -0.15, 0.35, 0.25, -0.45, 0.05, -0.55],
        [-0.6, 0.3, 0.2, -0.1, 0.5, 0.15, -0.25, 0.4, -0.35, 0.45, -0.05, 0.7],
    ]
)
SUM = torch.tensor([1.0, 0.5, 2.0, -1.0, 0.8, 1.5, -0.4, 0.9, 0.3, 1.2, 2.5, 0.6])
VAR = torch.arange(1.0, 13.0) / 10
STATISTICS = {"input_sum": SUM, "input_var": VAR, "input_sq": SUM**2 + VAR}


def mask(text):
    return torch.tensor([[entry == "1" for entry in row] for row in text.split()])


# zyxxmu/DSnoT, commit 4c029df, ``prune_DSnoT`` on the numbers above, starting from Wanda with half of each row
AUTHORS = [
    ({"max_cycles": 0}, "100101010101 101010010101"),
    ({"max_cycles": 1}, "101001010101 011010010101"),
    ({"max_cycles": 2}, "111001000101 010010011101"),
    ({}, "111001000101 010010011101"),
    ({"threshold": 0.3}, "100101010101 010010011101"),
    ({"same_sign": True}, "100101010101 101010010101"),
]


@pytest.mark.parametrize(("knobs", "expected"), AUTHORS)
def test_masks_of_the_authors_code(knobs, expected):
    keep = wanda_mask(WEIGHT, STATISTICS["input_sq"], 0.5)
    assert torch.equal(keep, mask("100101010101 101010010101"))
    assert torch.equal(dsnot_mask(WEIGHT, keep, **STATISTICS, **knobs), mask(expected))


def test_groups_of_the_authors_code():
    keep = wanda_mask(WEIGHT, STATISTICS["input_sq"], (2, 4))
    found = dsnot_mask(WEIGHT, keep, **STATISTICS, pattern=(2, 4))
    assert torch.equal(found, mask("100101010101 010111000101"))
    assert (found.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_one_swap_by_hand():
    """C = weight; 0.3 and -0.1 are pruned, so the error is 0.2: 0.3 comes back, and -0.2, the smaller below 0, goes."""
    weight = torch.tensor([[0.3, -0.1, 0.5, -0.4, -0.2]])
    ones = torch.ones(5)
    keep = torch.tensor([[False, False, True, True, True]])
    found = dsnot_mask(weight, keep, input_sum=ones, input_var=ones, input_sq=ones, max_cycles=1)
    assert found.tolist() == [[True, False, True, True, False]]


def problem(seed, rows=8, inputs=64):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    x = torch.randn(50, inputs, generator=generator) + 0.5 * torch.randn(inputs, generator=generator)
    statistics = {"input_sum": x.mean(0), "input_var": x.var(0, unbiased=False), "input_sq": x.square().mean(0)}
    return weight, x, statistics


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("same_sign", [False, True])
def test_error_falls_and_the_number_of_weights_stays(sparsity, same_sign):
    for seed in range(5):
        weight, x, statistics = problem(seed)
        before = weight.clone()
        keep = wanda_mask(weight, statistics["input_sq"], sparsity)
        first = keep.clone()
        found = dsnot_mask(weight, keep, **statistics, same_sign=same_sign)
        assert torch.equal(weight, before)
        assert torch.equal(keep, first)
        assert torch.equal(found.sum(1), keep.sum(1))
        lost, lost_before = ((x @ (weight * ~m).T).mean(0).abs() for m in (found, keep))
        if same_sign:
            assert (lost <= lost_before + 1e-5).all()
        assert lost.mean() < lost_before.mean()
        settled = lost_before < 0.0999
        assert torch.equal(found[settled], keep[settled])


@pytest.mark.parametrize("pattern", [(2, 4), (1, 8), (1, 2)])
def test_groups_keep_their_number(pattern):
    for seed in range(5):
        weight, _, statistics = problem(seed)
        keep = wanda_mask(weight, statistics["input_sq"], pattern)
        found = dsnot_mask(weight, keep, **statistics, pattern=pattern)
        assert (found.unflatten(1, (-1, pattern[1])).sum(-1) == pattern[0]).all()
        assert not torch.equal(found, keep)


def test_rows_without_candidates_stop():
    """Weights of one sign: none of the other can be pruned for those that come back."""
    weight, statistics = torch.arange(1.0, 9.0).view(1, 8), {name: torch.ones(8) for name in STATISTICS}
    keep = wanda_mask(weight, torch.ones(8), 0.5)
    assert torch.equal(dsnot_mask(weight, keep, **statistics, max_cycles=1000), keep)
    dead = {**statistics, "input_sum": torch.zeros(8), "input_var": torch.zeros(8)}
    assert torch.equal(dsnot_mask(weight, keep, **dead, threshold=0.0), keep)


def test_no_cycles_and_no_threshold_change_nothing():
    weight, _, statistics = problem(0)
    keep = wanda_mask(weight, statistics["input_sq"], 0.5)
    assert torch.equal(dsnot_mask(weight, keep, **statistics, max_cycles=0), keep)
    assert torch.equal(dsnot_mask(weight, keep, **statistics, threshold=float("inf")), keep)


def test_wanda_by_hand():
    weight = torch.tensor([[1.0, -2.0, 3.0, 1.0], [4.0, 1.0, -1.0, 1.0]])
    found = wanda_mask(weight, torch.tensor([100.0, 1.0, 1.0, 4.0]), 0.5)  # 10 2 3 2, 40 1 1 2
    assert found.tolist() == [[True, False, True, False], [True, False, False, True]]
    assert wanda_mask(weight, torch.ones(4), (1, 2)).tolist() == [
        [False, True, True, False],
        [True, False, False, True],
    ]
    assert wanda_mask(weight, torch.ones(4), 0.9).sum(1).tolist() == [1, 1]


def test_bad_input_is_refused():
    ones = torch.ones(12)
    keep = wanda_mask(WEIGHT, ones, 0.5)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.5"):
        wanda_mask(WEIGHT, ones, 1.5)
    with pytest.raises(ValueError, match=r"weight must be \[O, I\], got \(12,\)"):
        wanda_mask(ones, ones, 0.5)
    with pytest.raises(ValueError, match=r"input_var must be \[12\], one number per input, got \(3,\)"):
        dsnot_mask(WEIGHT, keep, input_sum=ones, input_var=torch.ones(3), input_sq=ones)
    with pytest.raises(ValueError, match=r"keep must be bool \(2, 12\) as weight, got torch.float32 \(2, 12\)"):
        dsnot_mask(WEIGHT, keep.float(), **STATISTICS)
    with pytest.raises(ValueError, match="max_cycles must be at least 0, got -1"):
        dsnot_mask(WEIGHT, keep, **STATISTICS, max_cycles=-1)
