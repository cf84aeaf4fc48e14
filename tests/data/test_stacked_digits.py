import pytest
import torch

from leyden.data import Digits, StackedDigits


def labels_of(images, part):
    """Digits of images, found by their pixels."""
    known = {_bytes(image): int(label) for image, label in zip(part["input"], part["target"], strict=True)}
    return torch.tensor([[known[_bytes(image)] for image in stack] for stack in images])


def _bytes(image):
    return image.numpy().tobytes()


def test_views_share_their_digits():
    data, plain = StackedDigits(num_digits=2, num_stacks=300), Digits()
    for name, size in (("train", 300), ("val", 180), ("test", 359)):
        stacks, part = data.dataset(name).tensors, plain.dataset(name).tensors
        assert stacks["input"].shape == stacks["input_2"].shape == (size, 2, 8, 8)
        labels = labels_of(stacks["input"], part)  # of images of the same part
        assert torch.equal(labels_of(stacks["input_2"], part), labels)
        assert torch.equal(labels[:, 0], stacks["target"])
        assert len(labels.unique(dim=0)) > 70  # of 100 pairs: the digits of a stack are independent
        same = (stacks["input"] == stacks["input_2"]).all(3).all(2)
        assert same.float().mean() < 0.1  # one image in 18 of the digit, in the smallest part


def test_a_class_without_images():
    data = StackedDigits(num_digits=1, num_stacks=50, class_shares={9: 0.0}, num_train=100)
    assert data.dataset("train").tensors["target"].max() == 8


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_digits must be 1 or more, got 0"):
        StackedDigits(num_digits=0)
    with pytest.raises(ValueError, match="num_stacks must be 1 or more, got -1"):
        StackedDigits(num_stacks=-1)
    with pytest.raises(ValueError, match="has no label_noise"):
        StackedDigits(label_noise=0.1)
