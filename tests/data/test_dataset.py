import pytest
import torch

from leyden.data import ImageTensorDataset, TensorDictDataset, normalize_pixels


def test_samples_and_batches_are_rows():
    dataset = TensorDictDataset({"input": torch.arange(6).view(3, 2), "target": torch.tensor([7, 8, 9])})
    assert len(dataset) == 3
    assert dataset[1]["input"].tolist() == [2, 3]
    assert dataset[1]["target"].shape == ()
    batch = dataset.__getitems__([2, 0, 2])
    assert batch["input"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert batch["target"].tolist() == [9, 7, 9]


@pytest.mark.parametrize("tensors", [{}, {"input": torch.zeros(3), "target": torch.zeros(2)}])
def test_unequal_lengths_are_refused(tensors):
    with pytest.raises(ValueError, match="of equal length, got the lengths"):
        TensorDictDataset(tensors)


def test_pixels_are_normalised_per_channel():
    pixels = torch.tensor([[[255, 0]], [[51, 102]]], dtype=torch.uint8)  # [2, 1, 2]: 1, 0 and 0.2, 0.4
    got = normalize_pixels(pixels, (0.5, 0.2), (0.5, 0.1))
    torch.testing.assert_close(got, torch.tensor([[[1.0, -1.0]], [[0.0, 2.0]]]))


def test_images_stay_bytes_in_memory():
    images = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    dataset = ImageTensorDataset(images, torch.arange(4), mean=(0.5,), std=(0.25,))
    assert dataset.tensors["input"].dtype == torch.uint8
    assert dataset[2]["input"].tolist() == [[[2.0, 2.0], [2.0, 2.0]]]
    batch = dataset.__getitems__([3, 1])
    assert batch["input"].dtype == torch.float32
    assert batch["input"].unique().tolist() == [2.0]
    assert batch["target"].tolist() == [3, 1]
    assert images.unique().tolist() == [255]


def test_one_mean_per_channel():
    with pytest.raises(ValueError, match="each of the 3 channels"):
        ImageTensorDataset(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1), mean=(0.5,), std=(0.5,))
