import math

import pytest
import torch

from leyden.nn import SoftMasks


def test_masks_are_sigmoids_of_their_logits():
    masks = SoftMasks(4, 2, 3)
    assert len(masks) == 4
    assert torch.equal(masks(torch.tensor([3, 3])), torch.full((2, 1, 2, 3), 0.5))
    with torch.no_grad():
        masks.logits[2, 0, 1, 0] = 0.1
    assert masks(torch.tensor([0, 2]))[1, 0, 1, 0].item() == pytest.approx(1 / (1 + math.exp(-0.8)))
    masks(torch.tensor([2])).sum().backward()
    assert masks.logits.grad[2, 0, 0, 0].item() == pytest.approx(8.0 * 0.25)
    assert not masks.logits.grad[[0, 1, 3]].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must be 1 or more, got 0"),
        ({"height": 0}, "height must be 1 or more, got 0"),
        ({"sharpness": 0.0}, "sharpness must be positive, got 0.0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftMasks(**{"num_images": 1, "height": 2, "width": 2} | arguments)
