"""Unified budget-aware schedule (A. Tang, Y. Dong, Y. Zeng, X. Zhou, Z. Lin, "Stepsize anything: A unified learning
rate schedule for budgeted-iteration training", 2025, arXiv 2505.24452).

No code of the authors was found, and the paper's equation could not be read: the fraction in `uba_factor` was checked
against one independent implementation only, and that the angle is ``pi * t / T``, and not ``pi * (2 t - 1) / (2 T)``,
is unverified, as is the guidance on phi. Restarts are left out: the budget is one cycle.
"""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["UBALR", "uba_factor"]


def uba_factor(step: int, total_steps: int, phi: float) -> float:
    """Share of the full learning rate in a step, ``2 c / (2 phi + (2 - phi) c)`` with ``c = 1 + cos(pi * t / T)``.

    Args:
        step: t, counted from 0; from T on the share is 0 (1 if phi is 0).
        total_steps: T.
        phi: 0 is constant, 2 half a cosine; the larger, the earlier the rate falls.

    Raises:
        ValueError: a number is out of range.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 0.0 <= phi < math.inf:
        raise ValueError(f"phi must be a number from 0 on, got {phi}")
    if phi == 0.0:
        return 1.0
    if step >= total_steps:
        return 0.0
    # the same fraction, divided by c = 2 cos^2(x / 2): nothing cancels near the end
    return 1.0 / (1.0 + 0.5 * phi * math.tan(0.5 * math.pi * step / total_steps) ** 2)


class UBALR(LRScheduler):
    """Lowers the learning rate from its full height to ``eta_min`` by `uba_factor`.

    Args:
        optimizer: its groups' ``lr`` are the full height.
        total_steps: T, in optimizer steps; `leyden.core.Method` fills in the length of the fit if None.
        phi: shape, tied to the condition number of the loss: small for well-conditioned problems (a long plateau),
            large for ill-conditioned ones (an early fall); up to about 1 for vision with SGD, 2 to 5 for language
            models with AdamW (unverified).
        eta_min: last learning rate.
        last_epoch: number of the step before the first, as in `torch.optim.lr_scheduler`.

    Raises:
        ValueError: an argument is out of range, or nobody filled in ``total_steps``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        phi: float = 1.0,
        *,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            raise ValueError("total_steps must be at least 1, got None")
        if not eta_min >= 0.0:
            raise ValueError(f"eta_min must be at least 0, got {eta_min}")
        uba_factor(0, total_steps, phi)  # checks them
        self.total_steps = total_steps
        self.phi = phi
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group in the present step, from its number alone: nothing adds up."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        factor = uba_factor(self.last_epoch, self.total_steps, self.phi)
        return [self.eta_min + (rate - self.eta_min) * factor for rate in self.base_lrs]
