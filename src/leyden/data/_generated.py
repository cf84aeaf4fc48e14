"""Data sets whose samples are drawn, each by a key of its own."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import sample_keys
from leyden.data.dataset import TensorDictDataset

__all__ = ["generated_datasets"]


def generated_datasets(
    draw: Callable[[Tensor], dict[str, Tensor]], *, num_train: int, num_eval: int, seed: int
) -> dict[str, Dataset]:
    """Training data, and as many samples for validation as for the test.

    Args:
        draw: makes S samples of as many keys, int64 ``[S]``; see `leyden.core.random`.
        num_train: samples for training.
        num_eval: samples of each other part.
        seed: of the keys.
    """
    sizes = {"train": num_train, "val": num_eval, "test": num_eval}
    return {
        name: TensorDictDataset(draw(sample_keys(seed, number, torch.arange(size))))
        for number, (name, size) in enumerate(sizes.items())
    }
