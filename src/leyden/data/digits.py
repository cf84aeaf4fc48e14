"""Handwritten digits of 8 x 8 pixels (UCI, by E. Alpaydin and C. Kaynak), embedded in scikit-learn."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

__all__ = ["Digits", "symmetric_label_noise"]


class Digits(DataModule):
    """1,797 grey images of ten digits: 1,258 to train on, 180 for validation, 359 for the test.

    Samples: ``input`` float32 ``[1, 8, 8]`` in [0, 1], ``target`` int64; with label noise the training samples also
    have the true label, ``clean_target``.

    Args:
        num_train: keep only so many training samples, all classes alike; a smaller subset is part of a larger one.
        class_shares: share of the training samples that is kept, by class; 1 for a class that is not named.
        label_noise: share of the training labels that are replaced by another class, all other classes alike.
        mean: of the pixels in [0, 1], subtracted from them.
        std: of the pixels, divided by; 0.5 for both makes them lie in [-1, 1].
        split_seed: which split, subset and noise; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: ``num_train``, ``class_shares``, ``label_noise`` or ``std`` is out of range.
    """

    num_classes = 10

    def __init__(
        self,
        *,
        num_train: int | None = None,
        class_shares: dict[int, float] | None = None,
        label_noise: float = 0.0,
        mean: float = 0.0,
        std: float = 1.0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_train is not None and not 1 <= num_train <= 1258:
            raise ValueError(f"num_train must lie in 1..1258, got {num_train}")
        for label, share in (class_shares or {}).items():
            if not (label in range(10) and 0.0 <= share <= 1.0):
                raise ValueError(f"class_shares must map classes 0..9 to shares in [0, 1], got {label}: {share}")
        if not 0.0 <= label_noise <= 1.0:
            raise ValueError(f"label_noise must lie in [0, 1], got {label_noise}")
        if not std > 0.0:
            raise ValueError(f"std must be positive, got {std}")
        self.num_train = num_train
        self.mean = mean
        self.std = std
        self.class_shares = class_shares or {}
        self.label_noise = label_noise
        self.split_seed = split_seed

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.float32).div_(16.0).unsqueeze(1)  # [S, 1, 8, 8]
        images = images.sub_(self.mean).div_(self.std)
        target = torch.from_numpy(digits.target)
        parts = split_indices(len(target), {"val": 0.1, "test": 0.2}, seed=self.split_seed, labels=target)
        parts["train"] = parts["train"][: self.num_train]
        for label, share in self.class_shares.items():
            member = target[parts["train"]] == label
            kept = member.cumsum(0) <= round(share * int(member.sum()))
            parts["train"] = parts["train"][~member | kept]
        tensors = {name: {"input": images[rows], "target": target[rows]} for name, rows in parts.items()}
        if self.label_noise > 0.0:
            clean = tensors["train"]["target"]
            noisy = symmetric_label_noise(clean, self.label_noise, self.num_classes, seed=self.split_seed)
            tensors["train"] |= {"target": noisy, "clean_target": clean}
        return {name: TensorDictDataset(part, sources=parts[name].tolist()) for name, part in tensors.items()}


def symmetric_label_noise(target: Tensor, rate: float, num_classes: int, *, seed: int) -> Tensor:
    """Replaces an exact share of the labels by another class, all other classes alike.

    Args:
        target: class numbers, int64 ``[S]``.
        rate: share that is replaced, in [0, 1].
        num_classes: number of classes.
        seed: which labels, and by what.

    Returns:
        int64 ``[S]``.
    """
    keys = sample_keys(seed, 1, torch.arange(len(target)))
    rows = uniform(keys, stream=0).argsort(stable=True)[: round(rate * len(target))]
    shift = 1 + (uniform(keys, stream=1) * (num_classes - 1)).to(torch.int64)  # in 1 .. num_classes - 1
    noisy = target.clone()
    noisy[rows] = (target[rows] + shift[rows]) % num_classes
    return noisy
