import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from leyden.data import PhotoPatches


def test_patches_are_those_of_the_photos():
    data = PhotoPatches(noise=0.1)
    photo = load_sample_images().images[1].astype(np.float64) / 255.0 @ [0.299, 0.587, 0.114]  # the flower, [427, 640]
    test = data.dataset("test").tensors
    per_photo = (427 // 8) * (128 // 8)
    assert test["target"].shape == (2 * per_photo, 64)
    patch = test["target"][per_photo + 16 + 3].view(8, 8)  # second row of patches, fourth in it
    np.testing.assert_allclose(patch.numpy(), photo[8:16, 512 + 24 : 512 + 32], atol=1e-6)
    train = data.dataset("train").tensors["target"]
    assert len(train) == 2 * ((427 - 8) // 4 + 1) * ((448 - 8) // 4 + 1)
    np.testing.assert_allclose(train[len(train) // 2 + 1].view(8, 8).numpy(), photo[:8, 4:12], atol=1e-6)


def test_noise_has_its_size_and_is_of_each_patch():
    parts = {name: PhotoPatches(noise=0.1).dataset(name).tensors for name in ("train", "val", "test")}
    for tensors in parts.values():
        noise = tensors["input"] - tensors["target"]
        assert noise.mean().abs() < 2e-3
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
        assert not torch.equal(noise[0], noise[1])
    assert torch.equal(PhotoPatches(seed=3).dataset("val").tensors["input"], parts["val"]["input"])
    clean = PhotoPatches(noise=0.0).dataset("val").tensors
    assert torch.equal(clean["input"], clean["target"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, "noise must be at least 0, got -0.1"),
        ({"patch_size": 65}, r"patch_size must lie in 1\.\.64, got 65"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhotoPatches(**arguments)
