"""Linear warm-up, then half a cosine down (I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm
Restarts", 2017, equation 5, without restarts)."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupCosine"]


class WarmupCosine(LRScheduler):
    """Raises the learning rate linearly to its full height, then lowers it along half a cosine.

    Step t of T, the first being 0, with W steps of warm-up, has the full rate times ``(t + 1) / (W + 1)`` for t < W,
    then ``m + (1 - m) / 2 * (1 + cos(pi * (t - W) / (T - W)))``, and m from T on.

    Args:
        optimizer: its groups' ``lr`` are the full height.
        warmup: W in steps (int), or as a share of ``total_steps`` (float).
        total_steps: T, in optimizer steps; `leyden.core.Method` fills in the length of the fit if None.
        min_lr_ratio: m, the last learning rate as a share of the full one.

    Raises:
        ValueError: an argument is out of range, or nobody filled in ``total_steps``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup: int | float = 0.05,
        total_steps: int | None = None,
        min_lr_ratio: float = 0.0,
    ) -> None:
        if total_steps is None or total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if isinstance(warmup, float) and not 0.0 <= warmup <= 1.0:
            raise ValueError(f"warmup must be a share in [0.0, 1.0] or a number of steps (an int), got {warmup}")
        if isinstance(warmup, int) and not 0 <= warmup <= total_steps:
            raise ValueError(f"warmup must lie between 0 and total_steps = {total_steps}, got {warmup}")
        if not 0.0 <= min_lr_ratio <= 1.0:
            raise ValueError(f"min_lr_ratio must lie in [0, 1], got {min_lr_ratio}")
        self.warmup = warmup
        self.total_steps = total_steps
        self.min_lr_ratio = min_lr_ratio
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group in the present step, from its number alone: nothing adds up."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return [rate * self._factor(self.last_epoch) for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        warmup = round(self.warmup * self.total_steps) if isinstance(self.warmup, float) else self.warmup
        if step >= self.total_steps:
            return self.min_lr_ratio
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / (self.total_steps - warmup)
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * share))
