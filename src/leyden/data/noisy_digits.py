"""Digits with noise of a known level, which comes with every image."""

from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.core.random import normal, sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["NoisyDigits"]


class NoisyDigits(Digits):
    """`Digits` with Gaussian noise on the pixels; its level, uniform in [0, 1], is the last entry of the input.

    Samples: ``input`` float32 ``[65]``, 64 pixels and the level; ``target`` int64. Every sample has its own level and
    noise, the same in every epoch.

    Args:
        max_noise: standard deviation of the noise at level 1; the pixels lie in [0, 1].
        **kwargs: as in `Digits`.

    Raises:
        ValueError: ``max_noise`` is negative.
    """

    def __init__(self, *, max_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not max_noise >= 0.0:
            raise ValueError(f"max_noise must be at least 0, got {max_noise}")
        self.max_noise = max_noise

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for number, (name, part) in enumerate(super().datasets().items()):
            tensors = cast(TensorDictDataset, part).tensors
            keys = sample_keys(self.split_seed, 2 + number, torch.arange(len(tensors["target"])))
            levels = uniform(keys, 1)  # [S, 1]
            noise = self.max_noise * levels * normal(keys, 64, stream=1)
            noisy = torch.cat([tensors["input"].flatten(1) + noise, levels], 1)
            parts[name] = TensorDictDataset(tensors | {"input": noisy}, sources=cast(TensorDictDataset, part).sources)
        return parts
