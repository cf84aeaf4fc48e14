"""Arithmetic whose operator is not told: every question has up to three right answers, of which one is asked for."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from leyden.core.random import uniform
from leyden.data._generated import generated_datasets
from leyden.data.module import DataModule

__all__ = ["AmbiguousArithmetic"]


class AmbiguousArithmetic(DataModule):
    """Two numbers a and b; the answer is ``a + b``, ``a - b`` or ``a * b``, modulo their number.

    Each sample draws its numbers, and its operator by the given chances; questions of validation and test are among
    those of training, with operators of their own. Samples: ``input`` float32 ``[2 * modulus]``, both numbers one-hot;
    ``target`` int64.

    Args:
        modulus: the numbers are 0 to ``modulus - 1``.
        num_train: samples to train on.
        num_eval: samples for validation, and as many for the test.
        chances: of plus, minus and times.
        data_seed: which samples; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        *,
        modulus: int = 20,
        num_train: int = 1200,
        num_eval: int = 2000,
        chances: tuple[float, float, float] = (0.6, 0.3, 0.1),
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if modulus < 2:
            raise ValueError(f"modulus must be at least 2, got {modulus}")
        if num_train < 1 or num_eval < 1:
            raise ValueError(f"num_train and num_eval must be at least 1, got {num_train} and {num_eval}")
        if len(chances) != 3 or min(chances) < 0.0 or abs(sum(chances) - 1.0) > 1e-6:
            raise ValueError(f"chances must be three numbers of 0 or more that sum to 1, got {tuple(chances)}")
        self.modulus = self.num_classes = modulus
        self.num_train = num_train
        self.num_eval = num_eval
        self.chances = tuple(chances)
        self.data_seed = data_seed

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        return generated_datasets(self._draw, num_train=self.num_train, num_eval=self.num_eval, seed=self.data_seed)

    def _draw(self, keys: Tensor) -> dict[str, Tensor]:
        numbers = (uniform(keys, 2) * self.modulus).to(torch.int64)  # [S, 2]
        a, b = numbers.unbind(1)
        bounds = torch.tensor(self.chances[:2]).cumsum(0)
        operator = torch.searchsorted(bounds, uniform(keys, stream=1), right=True)  # [S]
        answers = torch.stack([a + b, a - b, a * b], 1) % self.modulus  # [S, 3]
        return {
            "input": functional.one_hot(numbers, self.modulus).flatten(1).to(torch.float32),
            "target": answers.gather(1, operator.unsqueeze(1)).squeeze(1),
        }
