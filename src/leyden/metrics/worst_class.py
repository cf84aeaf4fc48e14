"""Accuracy of the class that is recognised worst."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["WorstClassAccuracy"]


class WorstClassAccuracy(Metric):
    """Smallest accuracy of a class, of those that have a sample."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    hits: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predicted class numbers, or scores ``[N, C]``, and true class numbers ``[N]``."""
        classes = preds.argmax(-1) if preds.ndim == 2 else preds
        self.hits.append(classes == target)
        self.target.append(target)

    def compute(self) -> Tensor:
        """Returns the accuracy, ``[]``."""
        hits, target = dim_zero_cat(self.hits), dim_zero_cat(self.target)
        count = target.bincount()
        right = target[hits].bincount(minlength=len(count))
        return torch.where(count > 0, right / count, 1.0).min()
