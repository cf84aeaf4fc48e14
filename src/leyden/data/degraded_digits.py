"""Digits with one corruption in training and another, or none, in the test."""

from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.core.random import sample_keys
from leyden.data.corruptions import CORRUPTIONS, corrupt
from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["DegradedDigits"]

_KEYS = {"train": 10, "val": 11, "test": 12}  # apart from those of other digits


class DegradedDigits(Digits):
    """`Digits` with their labels, every image corrupted once: it is the same in every epoch.

    Args:
        corruption: of training and validation, one of `leyden.data.CORRUPTIONS`; None leaves them clean.
        test_corruption: of the test.
        severity: of both, 1 to 5.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, *, corruption: str | None = None, test_corruption: str | None = None, severity: int = 5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("corruption", corruption), ("test_corruption", test_corruption)):
            if value is not None and value not in CORRUPTIONS:
                raise ValueError(f"{name} must be one of {', '.join(CORRUPTIONS)}, or None, got {value!r}")
        if severity not in range(1, 6):
            raise ValueError(f"severity must lie in 1..5, got {severity}")
        if (self.mean, self.std) != (0.0, 1.0):
            raise ValueError("mean and std must be left out: pixels are corrupted in [0, 1]")
        self.corruption, self.test_corruption, self.severity = corruption, test_corruption, severity

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts = super().datasets()
        for name, part in parts.items():
            tensors, sources = cast(TensorDictDataset, part).tensors, cast(TensorDictDataset, part).sources
            corruption = self.test_corruption if name == "test" else self.corruption
            if corruption is not None:
                keys = sample_keys(self.split_seed, _KEYS[name], torch.arange(len(tensors["target"])))
                images = corrupt(tensors["input"], keys, corruption=corruption, severity=self.severity)
                parts[name] = TensorDictDataset(tensors | {"input": images}, sources=sources)
        return parts
