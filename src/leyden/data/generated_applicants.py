"""Generated applicants with protected attributes, of which two tell something only together."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import normal, uniform
from leyden.data._generated import generated_datasets
from leyden.data.module import DataModule

__all__ = ["GeneratedApplicants"]


class GeneratedApplicants(DataModule):
    """Applicants who were accepted by their skill, by their age, and by gender and region together.

    The log-odds of acceptance are ``1.5 skill + gap * pair + gap * age / 2``, where ``pair`` is 1 if gender and region
    differ and -1 if they are alike: neither of the two alone says anything about acceptance. Skill, age, gender and
    region are independent; the attributes are not in the input, but leave traces in it.

    Samples: ``input`` float32 ``[6]``, each with noise: skill twice, ``pair`` twice, age, and nothing; ``target``
    int64, 1 for acceptance; ``gender`` and ``region`` int64, 0 or 1; ``age`` float32 of mean 0 and standard deviation
    1.

    Args:
        num_train: samples to train on.
        num_eval: samples for validation, and as many for the test.
        gap: how much the attributes count; without it the best prediction is independent of them.
        data_seed: which applicants; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: a number of samples is below 1, or ``gap`` is negative.
    """

    num_classes = 2

    def __init__(
        self, *, num_train: int = 2000, num_eval: int = 1000, gap: float = 1.0, data_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, size in {"num_train": num_train, "num_eval": num_eval}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not gap >= 0.0:
            raise ValueError(f"gap must be at least 0, got {gap}")
        self.num_train = num_train
        self.num_eval = num_eval
        self.gap = gap
        self.data_seed = data_seed

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        return generated_datasets(self._draw, num_train=self.num_train, num_eval=self.num_eval, seed=self.data_seed)

    def _draw(self, keys: Tensor) -> dict[str, Tensor]:
        skill, age = normal(keys, 2, stream=0).unbind(1)
        gender, region = (uniform(keys, 2, stream=1) < 0.5).to(torch.int64).unbind(1)
        pair = torch.where(gender != region, 1.0, -1.0)
        log_odds = 1.5 * skill + self.gap * (pair + age / 2)
        traces = torch.stack([skill, skill, pair, pair, age, torch.zeros_like(age)], 1)
        return {
            "input": traces + normal(keys, 6, stream=2),
            "target": (uniform(keys, stream=3) < log_odds.sigmoid()).to(torch.int64),
            "gender": gender,
            "region": region,
            "age": age,
        }
