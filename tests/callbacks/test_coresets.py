from itertools import combinations

import pytest
import torch

from leyden.callbacks import (
    adam_directions,
    coreset_by_source,
    facility_location,
    l1_similarity,
    source_quota,
    sparsify_by_source,
)

SOURCES = torch.tensor([0, 2, 2, 1, 0, 2, 2, 1, 2, 0, 2, 2, 1, 2])
# Rows without and with ties, and what the authors' code printed for them (BigML-CS-UCLA/CoLM at 395abfd,
# get_orders_and_weights of facility_location.py with submodlib 0.0.3): positions and weights by k.
ROWS = torch.tensor([[((37 * i**2 + 17 * j * i**3 + 11 * j + i) % 101) / 4.0 for j in range(4)] for i in range(14)])
TIED_ROWS = torch.tensor([[((7 * i**2 + 3 * j * i + 11 * j) % 23) / 4.0 for j in range(4)] for i in range(14)])
FIRST_SIMILARITIES = [14.5, 6.0, 9.0, 6.25, 4.25, 6.5, 3.0, 4.75, 4.25, 8.75, 3.0, 5.75, 4.25, 7.25]
AUTHORS = [
    (ROWS, 4, [9, 7, 11, 6], [3, 3, 5, 3]),
    (ROWS, 7, [9, 0, 7, 11, 6, 10, 1], [2, 1, 3, 3, 3, 1, 1]),
    (ROWS, 9, [9, 0, 7, 12, 11, 6, 10, 1, 13], [2, 1, 2, 1, 2, 3, 1, 1, 1]),
    (TIED_ROWS, 4, [9, 3, 11, 1], [3, 3, 4, 4]),
]


def test_similarity_of_the_authors():
    similarity = l1_similarity(TIED_ROWS)
    assert similarity[0].tolist() == FIRST_SIMILARITIES
    assert torch.equal(similarity, similarity.T)
    assert similarity.min() == 0.0
    assert l1_similarity(ROWS.bfloat16()).dtype == torch.float32
    assert l1_similarity(ROWS.double()).dtype == torch.float64


@pytest.mark.parametrize(("rows", "k", "expected", "expected_weights"), AUTHORS)
def test_choices_and_weights_of_the_authors(rows, k, expected, expected_weights):
    positions, weights = coreset_by_source(rows, SOURCES, k)
    assert (positions.tolist(), weights.tolist()) == (expected, expected_weights)


def test_choice_of_the_authors_without_sources():
    expected = ([3, 5, 4, 9, 7], [3, 4, 2, 3, 2])
    assert tuple(x.tolist() for x in facility_location(l1_similarity(ROWS), 5)) == expected
    assert tuple(x.tolist() for x in coreset_by_source(ROWS, None, 5)) == expected


# their increase_array_to_threshold on the shares rounded down
@pytest.mark.parametrize(
    ("counts", "k", "expected"),
    [
        ([3, 8, 2], 6, [2, 3, 1]),
        ([12, 5, 3, 4], 11, [5, 2, 2, 2]),
        ([1, 1, 9], 5, [1, 0, 4]),
        ([40, 7, 3], 25, [20, 3, 2]),
    ],
)
def test_quotas_of_the_authors(counts, k, expected):
    assert source_quota(counts, k) == expected


def test_quotas_never_exceed_a_source():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        counts = torch.randint(0, 9, (4,), generator=generator).tolist()
        for k in range(sum(counts) + 1):
            quota = source_quota(counts, k)
            assert sum(quota) == k
            assert all(0 <= q <= count for q, count in zip(quota, counts, strict=True))


def test_greedy_gains_by_brute_force():
    similarity = torch.rand(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions, weights = facility_location(similarity, 5)

    def value(chosen):
        return sum(max(similarity[i, j].item() for j in chosen) for i in range(9))

    for size in range(1, 6):
        before, best = positions[: size - 1].tolist(), positions[size - 1].item()
        others = [j for j in range(9) if j not in before]
        assert best == max(others, key=lambda j: value([*before, j]))
    optimum = max(value(subset) for subset in combinations(range(9), 5))
    assert value(positions.tolist()) >= (1.0 - 1.0 / 2.71828) * optimum
    assert weights.sum() == 9


def test_duplicates_constants_and_all_points():
    doubled = torch.cat([ROWS[:5], ROWS[:5]])
    positions, weights = facility_location(l1_similarity(doubled), 5)
    assert sorted((positions % 5).tolist()) == [0, 1, 2, 3, 4]  # a duplicate of a chosen point has no gain
    assert weights.tolist() == [2] * 5
    similarity = l1_similarity(ROWS)
    for constant in (-20.0, 7.0):
        assert torch.equal(facility_location(similarity + constant, 5)[0], facility_location(similarity, 5)[0])
    for sources in (None, SOURCES):
        positions, weights = coreset_by_source(ROWS, sources, 14)
        assert sorted(positions.tolist()) == list(range(14))
        assert weights.tolist() == [1] * 14
        assert coreset_by_source(ROWS, sources, 0)[0].shape == (0,)
    assert sorted(facility_location(similarity, 14)[0].tolist()) == list(range(14))


def test_of_a_nearest_pair_the_first_is_taken_whatever_the_rounding():
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    for shift in (-1e-6, 0.0, 1e-6):
        moved = rows.clone()
        moved[1] += shift
        moved[3] -= shift
        positions, _ = facility_location(l1_similarity(moved), 4)
        assert positions.tolist() == [2, 4, 0, 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_taken_last(value):
    rows = ROWS.clone()
    rows[[1, 11], 2] = value
    similarity = l1_similarity(rows)
    positions, weights = facility_location(similarity, 14)
    assert sorted(positions[-2:].tolist()) == [1, 11]
    assert weights.tolist() == [1] * 14
    kept = [i for i in range(14) if i not in (1, 11)]
    without = facility_location(l1_similarity(rows[kept]), 5)[0]
    assert facility_location(similarity, 5)[0].tolist() == [kept[i] for i in without]


def test_columns_by_source():
    x = torch.tensor([[1.0, -5.0, 3.0, 0.0], [1.0, -5.0, -3.0, 2.0], [0.0, 1.0, 0.0, 9.0], [4.0, -1.0, 0.0, 9.0]])
    sparse = sparsify_by_source(x, torch.tensor([0, 0, 7, 7]), 2)
    # means by hand: (1, -5, 0, 1) and (2, 0, 0, 9)
    assert sparse[:, 0].tolist() == [-5.0, -5.0, 9.0, 9.0]
    assert sparse[2:, 1].tolist() == [0.0, 4.0]
    assert sparsify_by_source(x, None, 2)[:, 0].tolist() == [0.0, 2.0, 9.0, 9.0]  # means (1.5, -2.5, 0, 5)
    assert torch.equal(sparsify_by_source(x, None, 9), x)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_directions_are_the_steps_of_torch(betas):
    grads = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    history = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exp_avg = exp_avg_sq = torch.zeros(5, dtype=torch.float64)
    for step, gradient in enumerate(history):
        _, [exp_avg], [exp_avg_sq] = adam_directions(gradient[None], exp_avg, exp_avg_sq, step, betas=betas, eps=1e-6)
    directions, means, squares = adam_directions(grads, exp_avg, exp_avg_sq, 4, betas=betas, eps=1e-6)
    for gradient, direction, mean, square in zip(grads, directions, means, squares, strict=True):
        weight = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, eps=1e-6)
        for earlier in history:
            weight.grad = earlier
            optimizer.step()
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), direction)
        torch.testing.assert_close(optimizer.state[weight]["exp_avg"], mean)
        torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq"], square)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"similarity must be \[n, n\], got \(14, 4\)"):
        facility_location(ROWS, 2)
    with pytest.raises(ValueError, match=r"k must lie in 0..14 \(the points\), got 15"):
        facility_location(l1_similarity(ROWS), 15)
    with pytest.raises(ValueError, match=r"k must lie in 0..3 \(the samples\), got 4"):
        source_quota([1, 2], 4)
    with pytest.raises(ValueError, match=r"sources must have one number per row, 14, got shape \(3,\)"):
        coreset_by_source(ROWS, SOURCES[:3], 2)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        sparsify_by_source(ROWS, None, 0)
