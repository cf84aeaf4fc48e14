"""Combinations of state dicts against float64, by hand, and as identities."""

import pytest
import torch
from torch import nn

from leyden.weights import (
    CheckpointFile,
    average,
    combine,
    ema_coefficients,
    ema_update_,
    greedy_soup,
    select_greedy,
    slerp,
)
from leyden.weights.combine import PIECE


def states(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "weight": torch.randn(4, 3, generator=generator).to(dtype),
            "scale": torch.randn((), generator=generator).to(dtype),
            "steps": torch.tensor(10 + number),
        }
        for number in range(count)
    ]


def test_against_float64():
    checkpoints = states(5)
    coefficients = torch.tensor([1.7, -0.4, 0.0, -0.6, 0.3], dtype=torch.float64)
    result = combine(checkpoints, coefficients)
    for name in ("weight", "scale"):
        exact = sum(c * state[name].double() for c, state in zip(coefficients, checkpoints, strict=True))
        torch.testing.assert_close(result[name].double(), exact, rtol=1e-6, atol=1e-6)
        assert result[name].dtype == torch.float32
    assert result["steps"].item() == 14  # of the last


def test_by_hand():
    one, two = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, -2.0])}
    assert combine([one, two], [0.25, 0.75])["w"].tolist() == [4.0, -1.0]
    assert combine([one, two], [3.0, -2.0])["w"].tolist() == [-7.0, 10.0]
    assert average([one, two])["w"].tolist() == [3.0, 0.0]
    assert average([one, two], [1, 3])["w"].tolist() == [4.0, -1.0]
    assert one["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("chosen", range(3))
def test_one_hot_is_that_checkpoint(chosen):
    checkpoints = states(3)
    checkpoints[(chosen + 1) % 3]["weight"][0, 0] = torch.inf  # is not even read
    result = combine(checkpoints, torch.eye(3)[chosen])
    assert torch.equal(result["weight"], checkpoints[chosen]["weight"])
    assert result["weight"].data_ptr() != checkpoints[chosen]["weight"].data_ptr()


def test_linear_in_the_coefficients():
    checkpoints = states(3, torch.float64)
    one, two = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([2.0, -1.5, 0.5])
    both = combine(checkpoints, 0.25 * one + 0.75 * two)["weight"]
    parts = 0.25 * combine(checkpoints, one)["weight"] + 0.75 * combine(checkpoints, two)["weight"]
    torch.testing.assert_close(both, parts)


def test_equal_checkpoints_are_their_mean():
    [state] = states(1, torch.float64)
    result = combine([state] * 3, [1.9, -1.3, 0.4])
    torch.testing.assert_close(result["weight"], state["weight"])
    assert torch.equal(average([state] * 4)["weight"], state["weight"])


def test_half_precision_is_summed_in_float32():
    small = {"w": torch.full((), 1 / 256, dtype=torch.bfloat16)}
    one = {"w": torch.ones((), dtype=torch.bfloat16)}
    # each alone would be lost beside the 1
    result = combine([one, *[small] * 8], [1.0] * 9)["w"]
    assert result.dtype == torch.bfloat16
    assert result.item() == 1 + 8 / 256


def test_tied_weights_stay_one_tensor():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    result = average([module.state_dict(), module.state_dict()])
    assert result["0.weight"] is result["1.weight"]
    assert result["0.bias"] is not result["1.bias"]
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict()
    result = average([module.state_dict(), other])  # not tied in all
    assert not torch.equal(result["0.weight"], result["1.weight"])


def test_ema_coefficients():
    # by hand: d^3, (1-d) d^2, (1-d) d, 1-d
    assert ema_coefficients(4, 0.5).tolist() == [0.125, 0.125, 0.25, 0.5]
    assert ema_coefficients(3, 0.0).tolist() == [0.0, 0.0, 1.0]
    assert ema_coefficients(3, 1.0).tolist() == [1.0, 0.0, 0.0]
    assert ema_coefficients(1, 0.3).tolist() == [1.0]
    assert ema_coefficients(50, 0.9).sum().item() == pytest.approx(1.0, abs=1e-14)


def test_combination_equals_the_running_average():
    checkpoints = states(6, torch.float64)
    running = {name: tensor.clone() for name, tensor in checkpoints[0].items()}
    for state in checkpoints[1:]:
        ema_update_(running, state, 0.8)
    combined = combine(checkpoints, ema_coefficients(6, 0.8))
    torch.testing.assert_close(combined, running)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: combine([], []), "at least one state dict, got none"),
        (lambda a: combine([a, {"v": a["w"]}], [1, 1]), "names differ: state dict 1 has no 'w'"),
        (lambda a: combine([a, a | {"v": a["w"]}], [1, 1]), "names differ: state dict 0 has no 'v'"),
        (lambda a: combine([a, {"w": torch.ones(3)}], [1, 1]), r"shapes of 'w' differ: \(2,\) and \(3,\)"),
        (lambda a: combine([a, a], [1.0]), "coefficients must be 2 finite numbers"),
        (lambda a: combine([a, a], [1.0, torch.nan]), "coefficients must be 2 finite numbers"),
        (lambda a: average([a, a], [1.0, -1.0]), "weights must be at least 0"),
        (lambda a: average([a], [0.0]), "with a positive sum"),
        (lambda a: ema_coefficients(0, 0.5), "num_checkpoints must be at least 1, got 0"),
        (lambda a: ema_coefficients(2, 1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda a: greedy_soup([a], lambda state: torch.nan), "gave NaN"),
        (lambda a: slerp(a, a, 2.0), r"t must lie in \[0, 1\]"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call({"w": torch.ones(2)})


# ---- greedy soup


def number(value):
    return {"w": torch.tensor(float(value))}


def test_greedy_soup_by_hand():
    # scores: -|w - 2|. Own: 1 -> -1, 8 -> -6, 3.5 -> -1.5, 2.5 -> -0.5. Best is 2.5; with 1 the mean is 1.75 (-0.25),
    # better; with 3.5 it is 2.33 (-0.33), worse; with 8 it is 3.83, worse.
    evaluated = []

    def score(state):
        evaluated.append(round(state["w"].item(), 2))
        return -abs(state["w"].item() - 2.0)

    models = [number(value) for value in (1, 8, 3.5, 2.5)]
    assert select_greedy(models, score) == [3, 0]
    assert evaluated == [1.0, 8.0, 3.5, 2.5, 1.75, 2.33, 3.83]
    assert greedy_soup(models, score)["w"].item() == 1.75


def test_equal_scores_keep_the_smaller_soup():
    assert select_greedy([number(1), number(3), number(2)], lambda state: 0.0) == [0]


# ---- slerp


def test_slerp_by_hand():
    one, two = (
        {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(1)},
        {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(2)},
    )
    half = slerp(one, two)
    torch.testing.assert_close(half["w"], torch.tensor([0.5, 0.5]).sqrt())
    assert half["n"].item() == 2
    third = slerp(one, two, 1 / 3)["w"]  # 30 degrees
    torch.testing.assert_close(third, torch.tensor([0.75**0.5, 0.5]))
    # a quarter circle of lengths 1 and 3: sin(45)/sin(90) of each
    torch.testing.assert_close(
        slerp(one, {"w": 3 * two["w"], "n": two["n"]})["w"], torch.tensor([0.5**0.5, 3 * 0.5**0.5])
    )


def test_slerp_of_nearly_parallel_or_zero_is_linear():
    one, two = {"w": torch.tensor([1.0, 0.01])}, {"w": torch.tensor([3.0, 0.0])}
    torch.testing.assert_close(slerp(one, two, 0.25)["w"], torch.tensor([1.5, 0.0075]))
    torch.testing.assert_close(slerp(one, {"w": torch.zeros(2)}, 0.25)["w"], torch.tensor([0.75, 0.0075]))
    assert slerp(one, two, 0.0)["w"].tolist() == one["w"].tolist()
    assert slerp(one, two, 1.0)["w"].tolist() == two["w"].tolist()


def test_files_give_the_bits_of_what_is_in_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    states = []
    for number in range(3):
        large = torch.randn(PIECE + 5, generator=generator)  # more than a piece
        states.append(
            {
                "large": large,
                "tied": large,
                "half": torch.randn(6, 5, generator=generator).bfloat16(),
                "turned": torch.randn(4, 3, generator=generator).T,
                "empty": torch.empty(0, 3),
                "scalar": torch.randn((), generator=generator),
                "counter": torch.tensor(number),
            }
        )
        torch.save(states[-1], tmp_path / f"{number}.pt")
    files = [CheckpointFile(tmp_path / f"{number}.pt") for number in range(3)]
    for coefficients in ([0.5, -1.0, 1.5], [0.0, 1.0, 0.0]):
        expected, found = combine(states, coefficients), combine(files, coefficients)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
        assert found["tied"] is found["large"]
    torch.save({**states[0], "large": states[0]["large"].double()}, tmp_path / "double.pt")
    mixed = combine([files[1], CheckpointFile(tmp_path / "double.pt")], [0.5, 0.5])
    assert mixed["large"].dtype == torch.float32
    unread = combine([CheckpointFile(tmp_path / "double.pt"), *files[1:]], [0.0, 0.5, 0.5])
    assert unread["large"].dtype == torch.float64  # that of the first
