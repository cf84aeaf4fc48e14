import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from leyden.data import OccludedPhoto


def test_the_clean_photo_is_of_means_of_pixels():
    test = OccludedPhoto(seed=0).dataset("test").tensors
    pixels = load_sample_image("flower.jpg")[5 + 13 * 2 : 5 + 13 * 3, 8 + 13 * 40 : 8 + 13 * 41]
    np.testing.assert_allclose(test["target"][0, :, 2, 40], pixels.mean((0, 1)) / 255.0, rtol=1e-5)
    assert test["target"].shape == (2, 3, 32, 48)
    assert torch.equal(test["target"][0], test["target"][1])
    assert torch.equal(test["input"], test["target"])


def test_views_are_the_photo_but_for_what_is_before_it():
    data = OccludedPhoto(num_views=5, num_occluders=3, seed=1)
    photo, views = data.dataset("val").tensors["target"][:1], data.dataset("train").tensors
    rectangles, squares = views["segments"][:, :3], views["segments"][:, 3:]
    covered = rectangles.any(1)
    assert torch.equal((views["target"] != photo).any(1), covered)
    for view in range(5):
        assert len(views["target"][view, :, covered[view]].unique(dim=1).T) <= 3  # one color each
    areas = rectangles.sum((-1, -2))
    assert ((areas >= 16) & (areas <= 20 * 20 + 40)).all()  # the edge of the photo may cut a rectangle to a quarter
    assert torch.equal(squares.sum(1), torch.ones(5, 32, 48, dtype=torch.int64))
    assert (squares.sum((-1, -2)) == 64).all()
    assert len(covered.flatten(1).unique(dim=0)) == 5
    assert not torch.equal(OccludedPhoto(num_views=5, seed=2).dataset("train").tensors["target"], views["target"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_views": 0}, "num_views must be 1 or more, got 0"),
        ({"num_occluders": -1}, "num_occluders must be 0 or more, got -1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        OccludedPhoto(**arguments)
