"""Pass@N (M. Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374, section 2.1)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from leyden.losses.dco import answer_nll

__all__ = ["PassAtN"]


class PassAtN(Metric):
    """Chance that at least one of n answers is right, ``mean(1 - (1 - p)^n)``, if they are drawn from the softmax.

    It is the expectation, by the probability p of the right answer; nothing is drawn.

    Args:
        n: number of answers.
        ignore_index: class number of tokens that are no part of the answer.
        **kwargs: as in `torchmetrics.Metric`.

    Raises:
        ValueError: ``n`` is below 1.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n: int = 1, *, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n = n
        self.ignore_index = ignore_index
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch, of the shapes that `leyden.losses.answer_nll` takes."""
        p = torch.exp(-answer_nll(logits, target, ignore_index=self.ignore_index).double())
        self.total += -torch.expm1(self.n * torch.log1p(-p)).sum()
        self.count += len(p)

    def compute(self) -> Tensor:
        """Returns the mean over all answers."""
        return self.total / self.count
