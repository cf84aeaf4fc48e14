import pytest
import torch

from leyden.data import DigitMixture, Digits


def parts(**arguments):
    plain, mixed = Digits(), DigitMixture(**arguments)
    return {split: (plain.dataset(split).tensors, mixed.dataset(split).tensors) for split in ("train", "val", "test")}


def test_sources_of_unequal_size_change_the_images_and_nothing_else():
    for split, (plain, mixed) in parts().items():
        assert torch.equal(plain["target"], mixed["target"])
        counts = mixed["source"].bincount().tolist()
        assert counts == {"train": [1006, 189, 63], "val": [60, 60, 60], "test": [120, 120, 119]}[split]
        for before, after, source in zip(plain["input"], mixed["input"], mixed["source"], strict=True):
            # by hand: the first row of an image turned counterclockwise is its last column
            assert torch.equal(after[0, 0], [before[0, 0], before[0, :, 7], 1.0 - before[0, 0]][source])


def test_one_source_for_evaluation_and_normalised_pixels():
    for split, (plain, mixed) in parts(eval_source=2, mean=0.25, std=0.5).items():
        if split != "train":
            assert (mixed["source"] == 2).all()
            torch.testing.assert_close(mixed["input"], (1.0 - plain["input"] - 0.25) / 0.5)


def test_bad_input_is_refused():
    for shares in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.4, 0.2), (float("nan"), 0.5, 0.5)):
        with pytest.raises(ValueError, match="shares must be three numbers of at least 0 whose sum is 1"):
            DigitMixture(shares=shares)
    with pytest.raises(ValueError, match="eval_source must be 0, 1, 2 or None, got 3"):
        DigitMixture(eval_source=3)
