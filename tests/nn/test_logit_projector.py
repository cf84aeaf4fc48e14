"""Exits of a network: shapes, and what they are made of."""

import pytest
import torch
from torch import nn

from leyden.nn import LogitProjector


@pytest.mark.parametrize("in_shape", [(6,), (5, 6), (6, 4, 4), (6, 9, 17)])
def test_features_become_logits(in_shape):
    projector = LogitProjector(in_shape, (3,))
    assert projector(torch.rand(2, *in_shape)).shape == (2, 3)


def test_maps_are_halved_to_four_places():
    halvings = [len(LogitProjector((2, side, side), (3,)).body) for side in (4, 5, 8, 9, 16, 17, 32)]
    assert halvings == [0, 1, 1, 2, 2, 3, 3]
    small = LogitProjector((2, 4, 4), (3,))
    x = torch.rand(5, 2, 4, 4)
    torch.testing.assert_close(small(x), small.head(x.mean((2, 3))))


def test_hidden_is_the_width():
    convolutions = LogitProjector((2, 8, 8), (3,), hidden=7)
    assert convolutions.head.in_features == 7
    block = LogitProjector((5, 6), (3,), hidden=7)
    assert block.body[0].linear1.out_features == 7


def test_tokens_attend_to_each_other_and_have_no_order():
    projector, x = LogitProjector((5, 6), (3,)), torch.rand(2, 5, 6)
    torch.testing.assert_close(projector(x), projector(x.flip(1)))
    assert isinstance(projector.body[0], nn.TransformerEncoderLayer)


def test_errors():
    with pytest.raises(ValueError, match=r"in_shape must be \[D\], \[L, D\] or \[C, H, W\] and out_shape \[C\], got"):
        LogitProjector((2, 4, 4), (3, 4))
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        LogitProjector((4,), (3,), hidden=0)
