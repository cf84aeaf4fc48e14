import pytest
import torch

from leyden.losses import reduce_loss

VALUES = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)


def test_reductions():
    assert reduce_loss(VALUES, "mean").item() == 3.0
    assert reduce_loss(VALUES, "sum").item() == 9.0
    assert reduce_loss(VALUES, "none") is VALUES


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'average'"):
        reduce_loss(VALUES, "average")
