import math

import pytest
import torch

from leyden.weights import ema_coefficients, lcsc_search
from leyden.weights._journal import Journal

WANTED = torch.tensor([-0.3, 0.1, 1.4, -0.2], dtype=torch.float64)  # sums to 1


def distance(coefficients):
    return (coefficients - WANTED).square().sum().item()


def search(evaluate=distance, iterations=300, seed=0, **knobs):
    return lcsc_search(evaluate, 4, iterations=iterations, generator=torch.Generator().manual_seed(seed), **knobs)


def test_finds_coefficients_that_are_no_average():
    best, value = search(iterations=1500, parents=10)
    assert value == distance(best) < 1e-5
    torch.testing.assert_close(best, WANTED, atol=0.003, rtol=0.0)
    best, value = search(lambda c: abs(c[-1].item() - 0.25), decays=[0.9])
    assert value < 0.01


def test_every_candidate_sums_to_one_and_the_best_is_kept():
    seen = []

    def evaluate(coefficients):
        assert coefficients.dtype == torch.float64
        assert coefficients.sum().item() == pytest.approx(1.0, abs=1e-12)
        seen.append((distance(coefficients), coefficients))
        return seen[-1][0]

    best, value = search(evaluate)
    assert len(seen) == 305
    for (_, coefficients), decay in zip(seen, (0.0, 0.5, 0.9, 0.95, 0.99), strict=False):
        assert torch.equal(coefficients, ema_coefficients(4, decay))
    assert value == min(found for found, _ in seen)
    assert any(torch.equal(best, coefficients) for _, coefficients in seen)
    assert value < min(found for found, _ in seen[:5])


def test_children_are_made_of_the_best():
    # without mutation, children of two ends of a line lie between them
    children = []

    def evaluate(coefficients):
        children.append(coefficients)
        return abs(coefficients[1].item() - 0.3)

    generator = torch.Generator().manual_seed(0)
    lcsc_search(evaluate, 2, iterations=60, decays=[0.0, 1.0], mutation_prob=0.0, generator=generator)
    assert all(0.0 <= child[1] <= 1.0 for child in children)
    assert torch.equal(children[0], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert min(abs(child[1].item() - 0.3) for child in children) < 0.06


@pytest.mark.parametrize("cut", [0, 1, 7, 42])
def test_a_killed_search_goes_on_to_the_same_bits(tmp_path, cut):
    whole, value = search(iterations=60)
    journal = Journal(tmp_path / "search.txt", {"seed": 0})
    assert journal.read() == []
    calls = []

    def evaluate(coefficients):
        if len(calls) == cut:
            raise KeyboardInterrupt
        calls.append(coefficients)
        journal.add(distance(coefficients))
        return distance(coefficients)

    with pytest.raises(KeyboardInterrupt):
        search(evaluate, iterations=60)
    with open(journal.path, "a") as file:
        file.write("0x1.8")  # a line that was being written
    known = Journal(tmp_path / "search.txt", {"seed": 0}).read()
    assert len(known) == cut
    rest = []
    again, other = search(lambda c: rest.append(c) or distance(c), iterations=60, known=known)
    assert len(rest) == 65 - cut
    assert torch.equal(again, whole)
    assert other == value


def test_journal_of_another_search_is_begun_anew(tmp_path):
    journal = Journal(tmp_path / "search.txt", {"seed": 0})
    journal.read()
    for value in (0.1, math.inf, -3e-300):
        journal.add(value)
    assert journal.read() == [0.1, math.inf, -3e-300]
    assert Journal(journal.path, {"seed": 1}).read() == []
    assert journal.read() == []


def test_nan_is_worst_and_one_checkpoint_is_itself():
    best, value = search(lambda c: math.nan if c[-1] > 0.6 else 1.0 - c[-1].item())
    assert 0.4 <= value < 0.6
    best, value = lcsc_search(lambda c: 3.0, 1)
    assert (best.tolist(), value) == ([1.0], 3.0)


def test_the_same_generator_gives_the_same_answer():
    assert torch.equal(search(seed=3)[0], search(seed=3)[0])
    assert not torch.equal(search(seed=3)[0], search(seed=4)[0])


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"iterations": -1}, "iterations must be"),
        ({"parents": 0}, "parents at least 1"),
        ({"decays": []}, "decays must name"),
        ({"decays": [1.5]}, "decay must lie"),
        ({"mutation_std": 0.0}, "mutation_std must be"),
        ({"mutation_prob": 2.0}, "mutation_prob lie"),
    ],
)
def test_refuses(knobs, match):
    with pytest.raises(ValueError, match=match):
        search(**knobs)
    with pytest.raises(ValueError, match="num_checkpoints"):
        lcsc_search(distance, 0)
