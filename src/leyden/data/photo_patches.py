"""Patches of the two sample photos that scikit-learn embeds, with noise to be taken away."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import normal, sample_keys
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule

__all__ = ["PhotoPatches"]


class PhotoPatches(DataModule):
    """Square patches of a photo of a temple and of a flower, in grey, with Gaussian noise.

    Samples: ``input``, the noisy patch, and ``target``, the clean one, float32 ``[patch_size^2]`` each; the pixels of
    the latter lie in [0, 1]. Of both photos the left 70 % are for training, the next 10 % for validation and the rest
    for the test; patches of the last two do not overlap. Every patch has its own noise, the same in every epoch.

    Args:
        noise: standard deviation.
        patch_size: side, in pixels.
        stride: pixels between two training patches.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: ``noise`` is negative, ``patch_size`` outside of 1..64, or ``stride`` below 1.
    """

    def __init__(self, *, noise: float = 0.1, patch_size: int = 8, stride: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if noise < 0.0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if not 1 <= patch_size <= 64:
            raise ValueError(f"patch_size must lie in 1..64, got {patch_size}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.noise = noise
        self.patch_size = patch_size
        self.stride = stride

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        pixels = torch.from_numpy(np.stack(load_sample_images().images)).to(torch.float32) / 255.0  # [2, 427, 640, 3]
        grey = pixels @ torch.tensor([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
        parts = {"train": grey[..., :448], "val": grey[..., 448:512], "test": grey[..., 512:]}
        strides = {"train": self.stride, "val": self.patch_size, "test": self.patch_size}
        found: dict[str, Dataset] = {}
        for number, (name, part) in enumerate(parts.items()):
            clean = _patches(part, self.patch_size, strides[name])
            noise = normal(sample_keys(0, number, torch.arange(len(clean))), clean.shape[1])
            found[name] = TensorDictDataset({"input": clean + self.noise * noise, "target": clean})
        return found


def _patches(images: Tensor, size: int, stride: int) -> Tensor:
    return images.unfold(1, size, stride).unfold(2, size, stride).reshape(-1, size * size)
