import pytest
import torch

from leyden.data import Digits, RareDigit


def test_counts_and_images():
    rare, digits = RareDigit(digit=8, share=0.2), Digits()
    counts = {name: rare.dataset(name).tensors["target"].bincount().tolist() for name in ("train", "val", "test")}
    everything = digits.dataset("train").tensors
    assert counts["train"] == [
        int((everything["target"] != 8).sum()),
        round(0.2 * int((everything["target"] == 8).sum())),
    ]
    for name in ("val", "test"):
        eights = (digits.dataset(name).tensors["target"] == 8).to(torch.int64)
        assert torch.equal(rare.dataset(name).tensors["target"], eights)
        assert torch.equal(rare.dataset(name).tensors["input"], digits.dataset(name).tensors["input"])
    train = rare.dataset("train").tensors
    eights = everything["input"][everything["target"] == 8]
    assert torch.equal(train["input"][train["target"] == 1], eights[: counts["train"][1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digit": 10}, "digit must lie in 0..9, got 10"),
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ({"label_noise": 0.1}, "has no label_noise"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        RareDigit(**arguments)
