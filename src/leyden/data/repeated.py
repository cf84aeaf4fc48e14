"""Fewer samples, seen several times (F. Xue, Y. Fu, W. Zhou, Z. Zheng, Y. You, "To Repeat or Not To Repeat: Insights
from Scaling LLM under Token-Crisis", 2023, arXiv 2305.13230): the data axis of the study, at the same number of steps.
"""

import torch
from torch import Tensor

from leyden.data.sampler import Order

__all__ = ["Repeated"]


class Repeated(Order):
    """``num_samples // epochs`` of the samples, each ``epochs`` times: pass after pass in a new order.

    All passes stand in one epoch of the trainer, which is as long as a single pass over all samples. Which samples they
    are depends on ``seed`` alone.

    Args:
        epochs: passes; 1 is an ordinary shuffle.
        seed: of the choice.

    Raises:
        ValueError: ``epochs`` is below 1.
    """

    def __init__(self, epochs: int = 1, seed: int = 0) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        self.epochs = epochs
        self.seed = seed

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the passes one after the other; raises `ValueError` if there are fewer samples than passes."""
        if num_samples < self.epochs:
            raise ValueError(f"epochs is {self.epochs}, but there are {num_samples} training samples")
        chosen = torch.randperm(num_samples, generator=torch.Generator().manual_seed(self.seed))
        chosen = chosen[: num_samples // self.epochs]
        passes = [chosen[torch.randperm(len(chosen), generator=generator)] for _ in range(self.epochs)]
        return torch.cat(passes)
