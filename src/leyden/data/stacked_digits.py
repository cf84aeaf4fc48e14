"""Stacks of digits in two views, which share several things at once: for learning without labels."""

from typing import Any, cast

import torch
from torch.utils.data import Dataset

from leyden.core.random import sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["StackedDigits"]


class StackedDigits(Digits):
    """Several `Digits` on top of each other, and a second stack of other images of the same digits.

    Samples: ``input`` and ``input_2``, float32 ``[K, 8, 8]``; ``target`` int64, the first digit. The K digits of a
    stack are independent. Validation and test have as many stacks as there are images.

    Args:
        num_digits: K.
        num_stacks: for training.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: an argument is out of range, or ``label_noise`` is given: the digits of views are those of labels.
    """

    def __init__(self, *, num_digits: int = 3, num_stacks: int = 2048, **kwargs: Any) -> None:
        for name, value in (("num_digits", num_digits), ("num_stacks", num_stacks)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if kwargs.get("label_noise"):
            raise ValueError("StackedDigits has no label_noise: leave it out")
        super().__init__(**kwargs)
        self.num_digits = num_digits
        self.num_stacks = num_stacks

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts: dict[str, Dataset] = {}
        for number, (name, part) in enumerate(super().datasets().items()):
            images, target = (cast(TensorDictDataset, part).tensors[key] for key in ("input", "target"))
            target, order = target.sort(stable=True)
            images = images[order, 0]  # [S, 8, 8], by digit
            count = target.bincount(minlength=self.num_classes)
            start = count.cumsum(0) - count
            size = self.num_stacks if name == "train" else len(target)
            keys = sample_keys(self.split_seed, 2 + number, torch.arange(size))
            first = (uniform(keys, self.num_digits) * len(target)).long()  # [S, K]
            digit = target[first]
            second = start[digit] + (uniform(keys, self.num_digits, stream=1) * count[digit]).long()
            parts[name] = TensorDictDataset({"input": images[first], "input_2": images[second], "target": digit[:, 0]})
        return parts
