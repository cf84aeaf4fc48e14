"""Digits from sources of unequal size, as the mixtures that language models learn from."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["DigitMixture"]


class DigitMixture(Digits):
    """`Digits` from three sources: as they are, turned by a quarter, and with inverted greys.

    Samples also have ``source``, int64: 0, 1 or 2. Every image is in one of them.

    Args:
        shares: of the sources in the training set.
        eval_source: the only source of validation and test; None has alike many of each.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, *, shares: Sequence[float] = (0.8, 0.15, 0.05), eval_source: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if len(shares) != 3 or min(shares) < 0.0 or not abs(sum(shares) - 1.0) <= 1e-6:
            raise ValueError(f"shares must be three numbers of at least 0 whose sum is 1, got {shares}")
        if eval_source not in (None, 0, 1, 2):
            raise ValueError(f"eval_source must be 0, 1, 2 or None, got {eval_source}")
        self.shares = tuple(shares)
        self.eval_source = eval_source

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for name, part in super().datasets().items():
            tensors, sources = cast(TensorDictDataset, part).tensors, cast(TensorDictDataset, part).sources
            place = torch.arange(len(tensors["target"]))  # the order of the images is random
            if name == "train":
                first, second = torch.tensor(self.shares[:2]).cumsum(0).mul(len(place)).round()
                source = (place >= first).long() + (place >= second).long()
            else:
                source = place % 3 if self.eval_source is None else torch.full_like(place, self.eval_source)
            x = tensors["input"]
            inverted = (1.0 - 2.0 * self.mean) / self.std - x  # 1 - x before it was normalised
            changed = torch.stack([x, x.rot90(1, (2, 3)), inverted])[source, place]
            parts[name] = TensorDictDataset(tensors | {"input": changed, "source": source}, sources=sources)
        return parts
