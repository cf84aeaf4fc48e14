import itertools
import math

import pytest
import torch

from leyden.data import Curriculum, Shuffled, balance_order, client_pool, curriculum_order, pacing_function

# Printed by the authors' code (google-research/understanding-curricula, utils/utils.py, get_pacing_function) for 100
# steps, 500 data, a = 0.8 and b = 0.2 at these steps; past the end of the growth it goes above 500, and is not used.
STEPS = [0, 1, 10, 40, 79]
PACED = {
    "linear": [100, 105, 150, 300, 495],
    "quad": [100, 100, 106, 200, 490],
    "root": [100, 144, 241, 382, 497],
    "step": [100, 100, 100, 100, 100],
    "exp": [100, 100, 100, 102, 452],
    "log": [100, 324, 416, 472, 499],
}


@pytest.mark.parametrize("name", PACED)
def test_pacing_as_in_the_authors_code(name):
    pacing = pacing_function(name, 100, 500)
    assert [pacing(step) for step in STEPS] == PACED[name]
    assert [pacing(step) for step in (80, 81, 160, 10**6)] == [500] * 4
    for a, b in ((0.8, 0.2), (1.3, 0.0), (0.01, 0.9)):
        sizes = [pacing_function(name, 100, 500, a=a, b=b)(step) for step in range(100)]
        assert sizes == sorted(sizes)
        assert sizes[0] == max(1, 500 * b)
    assert all(pacing_function(name, 100, 500, b=1.0)(step) == 500 for step in range(100))


def test_balance_as_in_the_authors_code():
    # printed by their balance_order
    order = torch.tensor([3, 7, 0, 10, 8, 5, 1, 4, 11, 2, 6, 9])
    targets = torch.tensor([0, 0, 0, 0, 1, 2, 1, 0, 2, 1, 0, 0])
    expected = [3, 8, 4, 7, 5, 6, 0, 9, 10, 1, 11, 2]
    assert balance_order(order, targets) == expected
    assert balance_order(order, torch.nn.functional.one_hot(targets).float()) == expected
    scores = torch.empty(12)
    scores[order] = torch.arange(12.0)
    assert curriculum_order(scores, targets=targets).tolist() == expected
    assert curriculum_order(scores, targets=targets, order="anti").tolist() == expected[::-1]


def test_orders():
    scores = torch.tensor([0.3, 0.1, 0.2, 0.1])
    assert curriculum_order(scores).tolist() == [1, 3, 2, 0]
    assert curriculum_order(scores, order="anti").tolist() == [0, 2, 3, 1]
    one, other = (curriculum_order(torch.arange(50.0), order="random", seed=seed) for seed in (1, 2))
    assert sorted(one.tolist()) == list(range(50))
    assert one.tolist() != other.tolist()
    assert torch.equal(one, curriculum_order(torch.zeros(50), order="random", seed=1))


def epoch(order, number, num_samples=40):
    return order(num_samples, number, torch.Generator().manual_seed(number))


def test_passes_through_a_growing_pool():
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0))
    easiest = scores.argsort().tolist()
    # 5 steps in each of 4 epochs; linear: 8 + 32 * t / 16 samples at step t
    order = Curriculum(scores, total_steps=20, batch_size=8)
    first, second, third, last = (epoch(order, number).view(5, 8).tolist() for number in range(4))
    assert sorted(first[0]) == sorted(easiest[:8])
    assert set(first[1]) <= set(easiest[:10])  # the pool of step 1, of which a pass is one batch
    assert set(first[2]) <= set(easiest[:12])
    assert set(first[4]) <= set(easiest[:16])
    assert not set(first[4]) <= set(easiest[:8])
    assert len({*second[0], *second[1]}) == 16  # 18 samples at step 5: a pass of two batches
    assert {*second[0], *second[1]} <= set(easiest[:18])
    assert {*second[2], *second[3]} <= set(easiest[:22])
    assert len({*third[0], *third[1], *third[2]}) == 24  # 28 samples at step 10
    assert sorted(itertools.chain(*last)) != list(range(40))  # 38 samples at step 15, of which one pass is four batches
    late = Curriculum(scores, total_steps=20, batch_size=8, a=0.75)
    assert sorted(epoch(late, 3).tolist()) == list(range(40))  # all are there from step 15 on
    assert torch.equal(epoch(order, 1), epoch(order, 1)), "a pure function"


def test_is_the_usual_order_without_a_curriculum():
    order = Curriculum(torch.rand(43), total_steps=20, batch_size=8, b=1.0)
    assert torch.equal(epoch(order, 2, 43), epoch(Shuffled(), 2, 43))


def test_a_pool_has_a_whole_batch():
    order = Curriculum(torch.arange(40.0), total_steps=1000, batch_size=16, b=0.0)
    assert epoch(order, 0)[:16].sort().values.tolist() == list(range(16))


def test_client_pool():
    losses = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.7])
    assert client_pool(losses, 0, 10).tolist() == [1]
    assert client_pool(losses, 0, 10, minimum=2).tolist() == [1, 3]
    assert client_pool(losses, 4, 10).tolist() == [1, 3, 2]  # 1 + 4 * 4 / 8
    assert client_pool(losses, 8, 10, minimum=2).tolist() == [1, 3, 2, 4, 0]
    assert client_pool(losses, 4, 10, order="anti").tolist() == [0, 4, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pacing_function("cubic", 10, 10), "pacing must be one of .*, got 'cubic'"),
        (lambda: pacing_function("exp", 0, 10), "total_steps must be at least 1, got 0"),
        (lambda: pacing_function("exp", 10, 0), "total_data must be at least 1, got 0"),
        (lambda: pacing_function("exp", 10, 10, a=0.0), "a must be positive, got 0.0"),
        (lambda: pacing_function("exp", 10, 10, b=1.5), r"b must lie in \[0, 1\], got 1.5"),
        (lambda: curriculum_order(torch.ones(3), order="hard"), "order must be .*, got 'hard'"),
        (lambda: curriculum_order(torch.tensor([1.0, math.nan])), "without NaN"),
        (lambda: curriculum_order(torch.ones(0)), "N at least 1"),
        (lambda: curriculum_order(torch.ones(3), targets=torch.ones(2)), "those of the 3 scores, got 2"),
        (lambda: client_pool(torch.ones(3), 0, 5, minimum=4), r"minimum must lie in 1..3 \(the clients\), got 4"),
        (lambda: Curriculum([1.0], total_steps=5, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: epoch(Curriculum([1.0], total_steps=5, batch_size=1), 0), "scores has 1 entries, but there are 40"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
