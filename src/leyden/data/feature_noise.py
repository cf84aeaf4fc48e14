"""Common and rare features, after the feature-noise data of D. Zou, Y. Cao, Y. Li, Q. Gu, "The Benefits of Mixup for
Feature Learning", 2023, arXiv 2303.08433 (sizes and places of the patches are unverified)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import normal, sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule

__all__ = ["FeatureNoise"]


class FeatureNoise(DataModule):
    """Two classes, each known by a common feature or, in a few samples, by a rare one; the test is of the rare ones.

    A sample is a row of patches: first the feature of its class, then ``num_distractors`` weak common features of
    either class, then Gaussian noise. There is enough noise to tell the training samples apart, so that those with a
    rare feature can be learned by heart.

    Samples: ``input`` float32 ``[num_patches, dim]``, ``target`` int64, ``group`` int64, 1 where the feature is rare.
    Beside the training samples there are 200 for validation and 1,000 for the test.

    Args:
        num_train: training samples.
        rare: share of the training samples that have the rare feature, also in validation; in the test all have it.
        num_patches: patches of a sample.
        dim: size of a patch.
        num_distractors: patches with a weak common feature.
        distractor_size: size of that feature; a feature of the class has size 1.
        noise: standard deviation of the noise.
        data_seed: which samples; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    num_classes = 2

    def __init__(
        self,
        *,
        num_train: int = 300,
        rare: float = 0.1,
        num_patches: int = 5,
        dim: int = 400,
        num_distractors: int = 1,
        distractor_size: float = 0.3,
        noise: float = 0.15,
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_train < 1:
            raise ValueError(f"num_train must be at least 1, got {num_train}")
        if not 0.0 <= rare <= 1.0:
            raise ValueError(f"rare must lie in [0, 1], got {rare}")
        if not 0 <= num_distractors < num_patches:
            raise ValueError(f"num_distractors must be at least 0 and below num_patches, got {num_distractors}")
        if dim < 4:
            raise ValueError(f"dim must be at least 4, one per feature, got {dim}")
        if distractor_size < 0.0 or noise < 0.0:
            raise ValueError(f"distractor_size and noise must be at least 0, got {distractor_size} and {noise}")
        self.num_train = num_train
        self.rare = rare
        self.num_patches = num_patches
        self.dim = dim
        self.num_distractors = num_distractors
        self.distractor_size = distractor_size
        self.noise = noise
        self.data_seed = data_seed

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        sizes = {"train": (self.num_train, self.rare), "val": (200, self.rare), "test": (1000, 1.0)}
        return {
            name: TensorDictDataset(self._draw(sample_keys(self.data_seed, number, torch.arange(size)), rare))
            for number, (name, (size, rare)) in enumerate(sizes.items())
        }

    def _draw(self, keys: Tensor, rare: float) -> dict[str, Tensor]:
        num_features = 1 + self.num_distractors
        rows = torch.arange(len(keys))
        target = rows % 2
        group = (rows < round(rare * len(keys))).to(torch.int64)
        classes = (2 * uniform(keys, self.num_distractors)).to(torch.int64)  # of the distractors
        x = self.noise * normal(keys, self.num_patches, self.dim, stream=1)
        x[:, :num_features] = 0.0
        x[rows, 0, target + 2 * group] = 1.0  # axes: common features of the two classes, then the rare ones
        x[:, 1:num_features].scatter_(2, classes.unsqueeze(-1), self.distractor_size)
        return {"input": x, "target": target, "group": group}
