"""Designs and values of a function that is known only to the test, for offline optimization.

The function is Hartmann's with six inputs (L. Dixon, G. Szego, "The Global Optimisation Problem: An Introduction",
1978).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import sample_keys, uniform
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule

__all__ = ["HartmannDesigns", "hartmann6"]

_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_WIDTHS = (
    (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
    (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
    (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
    (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
)
_CENTRES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann6(x: Tensor) -> Tensor:
    """Four bumps, ``sum_i h_i exp(-sum_j w_ij (x_j - c_ij)^2)``; the largest value is 3.32237.

    Args:
        x: ``[N, 6]``, in [0, 1].

    Returns:
        ``[N]``.
    """
    heights, widths, centres = (x.new_tensor(table) for table in (_HEIGHTS, _WIDTHS, _CENTRES))
    distances = (widths * (x.unsqueeze(1) - centres).square()).sum(-1)  # [N, 4]
    return (heights * (-distances).exp()).sum(-1)


class HartmannDesigns(DataModule):
    """Random designs, of which the worse ones are known with their values, and the better ones are the test.

    Samples: ``input`` float32 ``[6]`` in [0, 1], ``target`` float32 ``[1]``, standardised with the known values. Of the
    known ones a tenth is for validation.

    Args:
        num_designs: all designs.
        known: share of them that is known.
        split_seed: which designs; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: ``known`` is out of range, or there are too few designs.
    """

    num_features = 6
    bounds = (0.0, 1.0)

    def __init__(self, *, num_designs: int = 1000, known: float = 0.8, split_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < known < 1.0:
            raise ValueError(f"known must lie in (0, 1), got {known}")
        if min(known * num_designs, (1.0 - known) * num_designs) < 10.0:
            raise ValueError(
                f"num_designs must give 10 known and 10 other designs, got {num_designs} with known={known}"
            )
        self.num_designs = num_designs
        self.known = known
        self.split_seed = split_seed

    def true_value(self, designs: Tensor) -> Tensor:
        """What a design is worth: ``[N, 6]`` to ``[N]``, not standardised."""
        return hartmann6(designs)

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        designs = uniform(sample_keys(self.split_seed, 0, torch.arange(self.num_designs)), 6)  # [S, 6]
        values = self.true_value(designs)
        order = values.argsort(stable=True)
        known, better = order.tensor_split([round(self.known * self.num_designs)])
        mean, std = values[known].mean(), values[known].std(correction=0)
        val, train = known.sort().values.tensor_split([len(known) // 10])  # in the order they were drawn in
        return {
            name: TensorDictDataset({"input": designs[rows], "target": ((values[rows] - mean) / std).unsqueeze(-1)})
            for name, rows in (("train", train), ("val", val), ("test", better))
        }
