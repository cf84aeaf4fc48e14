import pytest
import torch

from leyden.data import Digits, RotatedDigits, Sequential


def test_domains_and_right_angles():
    data, plain = RotatedDigits(angles=[0.0, 90.0], test_angles=[180.0, 270.0, 0.0]), Digits()
    for name, turns, first in (("train", [0, 1], 0), ("val", [0, 1], 0), ("test", [2, 3, 0], 2)):
        tensors, images = data.dataset(name).tensors, plain.dataset(name).tensors["input"]
        assert torch.equal(tensors["target"], plain.dataset(name).tensors["target"])
        counts = tensors["domain"].bincount()[first:]
        assert len(counts) == len(turns)
        assert counts.max() - counts.min() <= 1
        for number, turn in enumerate(turns):
            rows = tensors["domain"] == first + number
            turned = torch.rot90(images[rows], turn, (2, 3))  # counterclockwise
            torch.testing.assert_close(tensors["input"][rows], turned, rtol=0.0, atol=1e-4)


def test_needs_angles():
    with pytest.raises(ValueError, match="must have one angle or more"):
        RotatedDigits(test_angles=[])


def test_domain_batches_are_an_order():
    with pytest.raises(ValueError, match="domain_batches is an order of its own: leave order out"):
        RotatedDigits(domain_batches=True, order=Sequential())
    data = RotatedDigits(domain_batches=True, batch_size=16, seed=0)
    domain = data.dataset("train").tensors["domain"]
    batches = [domain[batch["index"]] for batch in data.train_dataloader()]
    assert all(len(batch) == 16 and (batch == batch[0]).all() for batch in batches)
    assert {int(batch[0]) for batch in batches} == {0, 1, 2}
