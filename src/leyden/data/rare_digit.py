"""One digit against the others: classification with few positive samples."""

from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["RareDigit"]


class RareDigit(Digits):
    """`Digits` with two classes: 1 for one of the ten digits, 0 for the nine others.

    A tenth of validation and test samples are positive, and of the training samples about ``share / 10``.

    Args:
        digit: which.
        share: of the training samples of this digit that are kept.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: an argument is out of range, or ``label_noise`` is given, which is of ten classes.
    """

    num_classes = 2

    def __init__(self, *, digit: int = 8, share: float = 0.2, **kwargs: Any) -> None:
        if digit not in range(10):
            raise ValueError(f"digit must lie in 0..9, got {digit}")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        if kwargs.get("label_noise"):
            raise ValueError("RareDigit has no label_noise: leave it out")
        super().__init__(**kwargs)
        self.digit = digit
        self.class_shares = {digit: share}

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for name, part in super().datasets().items():
            tensors = cast(TensorDictDataset, part).tensors
            target = (tensors["target"] == self.digit).to(torch.int64)
            parts[name] = TensorDictDataset(tensors | {"target": target}, sources=cast(TensorDictDataset, part).sources)
        return parts
