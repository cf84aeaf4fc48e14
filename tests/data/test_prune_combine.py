"""Training on pruned and combined samples as one DataModule."""

import pytest
import torch

from leyden.data import (
    Compose,
    Digits,
    HorizontalFlip,
    PCADataModule,
    RandomResizedCrop,
    pack_tensors,
    prune_and_combine,
)


@pytest.fixture
def predictions(tmp_path):
    """Of 60 digits: those with small numbers are easy."""
    target = Digits(num_train=60).datasets()["train"].tensors["target"]
    logits = torch.zeros(60, 10)
    logits[torch.arange(60), target] = torch.linspace(5.0, 0.0, 60)
    (tmp_path / "p").write_bytes(pack_tensors({"output": logits, "index": torch.arange(60)}))
    return str(tmp_path / "p")


def make(predictions, **given):
    return PCADataModule(Digits(num_train=60), predictions, **{"ipc": 1, "batch_size": 5, **given})


def test_trains_on_what_is_combined(predictions):
    data = make(predictions)
    source = Digits(num_train=60).datasets()
    train = data.dataset("train").tensors
    expected = prune_and_combine(source["train"].tensors, [predictions], images_per_class=1)
    assert torch.equal(train["input"], expected["input"])
    assert train["target"].tolist() == [*range(10)]
    # the four first ones of a class: by hand, of class 3, the mean over 2 x 2 pixels, row by row
    first = source["train"].tensors["input"][source["train"].tensors["target"] == 3][:4, 0]
    small = first.view(4, 4, 2, 4, 2).mean((2, 4))
    by_hand = torch.cat([torch.cat([small[0], small[1]], 1), torch.cat([small[2], small[3]], 1)])
    torch.testing.assert_close(train["input"][3, 0], by_hand)
    assert data.num_classes == 10
    assert torch.equal(data.dataset("val").tensors["input"], source["val"].tensors["input"])
    assert torch.equal(data.dataset("predict").tensors["input"], source["train"].tensors["input"])


def test_without_predictions_it_is_the_source(predictions):
    data, source = make(None), Digits(num_train=60).datasets()["train"].tensors
    assert torch.equal(data.dataset("train").tensors["input"], source["input"])
    # pruning alone keeps the images as they are; hard ones are the last
    hard = make(predictions, factor=1, keep="high").dataset("train").tensors
    last = torch.stack([source["input"][source["target"] == number][-1] for number in range(10)])
    assert torch.equal(hard["input"], last)


def test_crops_show_about_a_tile(predictions):
    assert make(predictions).augment.scale == (0.25, 1.0)
    assert make(predictions, min_scale=1.0).augment is None
    flip = HorizontalFlip()
    both = make(predictions, augment=flip).augment
    assert isinstance(both, Compose)
    assert isinstance(both.augments[0], RandomResizedCrop)
    assert both.augments[1] is flip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"factor": 0}, "factor must be at least 1, got 1 and 0"),
        ({"keep": "all"}, "keep must be 'low' or 'high', got 'all'"),
        ({"min_scale": 0.0}, r"min_scale must lie in \(0, 1\], got 0.0"),
        ({"predictions": []}, "predictions must be at least one file"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        make(**{"predictions": "x", **given})


def test_too_few_samples_for_an_image(predictions):
    with pytest.raises(ValueError, match="factor=8 puts 64 samples of a class into an image, but no class has as many"):
        make(predictions, factor=8).dataset("train")


def test_predictions_of_other_samples(predictions):
    with pytest.raises(ValueError, match="predicts 60 samples, which are not the 50 of the training set"):
        PCADataModule(Digits(num_train=50), predictions, batch_size=5).dataset("train")
