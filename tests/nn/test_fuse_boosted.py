import pytest
import torch

from leyden.nn import fuse_boosted


def test_two_stages_by_hand():
    # outputs 2 tanh(x) + 1 and 4 tanh(3 x - 1), of which 0.5 and -1 go into the sum, over 10
    parts = [
        tuple(torch.tensor(values) for values in ([[1.0]], [0.0], [[2.0]], [1.0])),
        tuple(torch.tensor(values) for values in ([[3.0]], [-1.0], [[4.0]], [0.0])),
    ]
    hidden, hidden_bias, out, bias = fuse_boosted(parts, [0.5, -1.0], torch.tensor([10.0]))
    assert hidden.tolist() == [[1.0], [3.0]]
    assert hidden_bias.tolist() == [0.0, -1.0]
    assert out.tolist() == [[1.0, -4.0]]
    assert bias.tolist() == [10.5]
    first = fuse_boosted(parts[:1], [0.5], torch.tensor([10.0]))
    assert [x.tolist() for x in first] == [[[1.0]], [0.0], [[1.0]], [10.5]]


def test_stages_and_steps_must_fit():
    for parts, steps in (([], []), ([(torch.ones(1, 1), torch.ones(1), torch.ones(1, 1), torch.ones(1))], [])):
        with pytest.raises(ValueError, match=r"parts must hold a stage or more, and steps as many, got \d and 0"):
            fuse_boosted(parts, steps, torch.zeros(1))
