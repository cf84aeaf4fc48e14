"""Bags of digits, some with a few of one kind: multiple instance learning in small."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import sample_keys, uniform
from leyden.data.bags import BagDataset
from leyden.data.dataset import TensorDictDataset
from leyden.data.digits import Digits

__all__ = ["DigitBags"]


class DigitBags(Digits):
    """Bags of images of `Digits`: class 1 if one digit is among them, else 0; as many of one class as of the other.

    Batches are those of `BagDataset`; ``instance_target`` is 1 for that digit and 0 for others. Bags of a part hold
    images of that part of the digits, drawn with replacement.

    Args:
        digit: which.
        num_bags: for training.
        num_eval_bags: for validation, and for the test.
        min_size: smallest number of instances of a bag.
        max_size: largest number.
        max_positive: a bag of class 1 has 1 to so many of the digit, each number alike.
        **kwargs: as in `Digits`.

    Raises:
        ValueError: an argument is out of range, or ``label_noise`` is given, which is of ten classes.
    """

    num_classes = 2

    def __init__(
        self,
        *,
        digit: int = 9,
        num_bags: int = 256,
        num_eval_bags: int = 256,
        min_size: int = 30,
        max_size: int = 60,
        max_positive: int = 3,
        **kwargs: Any,
    ) -> None:
        if digit not in range(10):
            raise ValueError(f"digit must lie in 0..9, got {digit}")
        for name, value in {"num_bags": num_bags, "num_eval_bags": num_eval_bags, "max_positive": max_positive}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not max_positive <= min_size <= max_size:
            raise ValueError(
                f"min_size must lie between max_positive, {max_positive}, and max_size, {max_size}, got {min_size}"
            )
        if kwargs.get("label_noise"):
            raise ValueError("DigitBags has no label_noise: leave it out")
        super().__init__(**kwargs)
        self.digit = digit
        self.num_bags = {"train": num_bags, "val": num_eval_bags, "test": num_eval_bags}
        self.sizes = min_size, max_size
        self.max_positive = max_positive

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        return {
            name: self._bags(cast(TensorDictDataset, part), sample_keys(self.split_seed, number, torch.arange(count)))
            for number, ((name, part), count) in enumerate(
                zip(super().datasets().items(), self.num_bags.values(), strict=True)
            )
        }

    def _bags(self, part: TensorDictDataset, keys: Tensor) -> BagDataset:
        images, label = part.tensors["input"], part.tensors["target"]
        positive, negative = (label == self.digit).nonzero()[:, 0], (label != self.digit).nonzero()[:, 0]
        if not (len(positive) and len(negative)):
            raise ValueError(
                f"num_train and class_shares must leave images of {self.digit} and of others, got {len(positive)} and "
                f"{len(negative)}"
            )
        smallest, largest = self.sizes
        sizes = smallest + (uniform(keys, stream=0) * (largest - smallest + 1)).long()  # [S]
        target = torch.arange(len(keys)) % 2
        num_positive = target * (1 + (uniform(keys, stream=1) * self.max_positive).long())
        there = torch.arange(largest) < sizes.unsqueeze(1)  # [S, N]
        order = uniform(keys, largest, stream=2).masked_fill(~there, 2.0).argsort(1).argsort(1)
        is_positive = order < num_positive.unsqueeze(1)
        draw = uniform(keys, largest, stream=3)
        rows = torch.where(
            is_positive, positive[(draw * len(positive)).long()], negative[(draw * len(negative)).long()]
        )
        return BagDataset(images[rows[there]], sizes, target, instance_target=is_positive[there].long())
