"""Projectors against the maps that they are."""

import pytest
import torch
from torch.nn import functional

from leyden.nn import Projector


def test_vectors_and_tokens_go_through_a_linear_map():
    for in_shape, out_shape in (((3,), (5,)), ((7, 3), (7, 5))):
        projector, x = Projector(in_shape, out_shape), torch.rand(2, *in_shape)
        assert projector(x).shape == (2, *out_shape)
        torch.testing.assert_close(projector(x), x @ projector.map.weight.T + projector.map.bias)


def test_maps_change_their_size():
    projector, x = Projector((3, 4, 4), (5, 2, 8)), torch.rand(2, 3, 4, 4)
    mixed = torch.einsum("oc,nchw->nohw", projector.map.weight[:, :, 0, 0], x) + projector.map.bias[:, None, None]
    wanted = functional.interpolate(mixed, size=(2, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(projector(x), wanted)
    assert Projector((3, 4, 4), (5, 4, 4))(x).shape == (2, 5, 4, 4)


def test_errors():
    with pytest.raises(ValueError, match=r"must both be \[D\], \[L, D\] or \[C, H, W\], got \[3\] and \[3, 4\]"):
        Projector((3,), (3, 4))
    with pytest.raises(ValueError, match="tokens must be of the same number on both sides, got 3 and 4"):
        Projector((3, 8), (4, 8))
