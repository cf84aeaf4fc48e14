"""Schedules refined from the gradient norms of an earlier run, and linear decay (A. Defazio, A. Cutkosky, H. Mehta,
K. Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement", 2023, arXiv 2310.07831,
theorem 3 and algorithm 1). Original code: facebookresearch/adaptive_scheduling, ``find_schedule.py`` and ``visual.py``.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LinearDecayLR", "RefinedLR", "refined_schedule", "smooth_grad_norms"]

Numbers = Tensor | Sequence[float]


def smooth_grad_norms(grad_norms: Numbers, tau: float = 0.1) -> Tensor:
    """Running median of ``2 * floor(tau * T / 2) + 1`` norms, the end reflected as in the authors' code.

    Args:
        grad_norms: norms of the gradients of a run, step by step, ``[T]``.
        tau: width of the filter as a share of the run, in [0, 1].

    Returns:
        float64 ``[T]``.

    Raises:
        ValueError: an argument is out of range.
    """
    from scipy.ndimage import median_filter  # slow to import

    norms = _checked(grad_norms, "grad_norms")
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")
    width = 2 * (int(tau * len(norms)) // 2) + 1
    padded = np.pad(norms.numpy(), (0, 2 * width), mode="reflect")
    return torch.from_numpy(median_filter(padded, size=width, mode="nearest")[: len(norms)].copy())


def refined_schedule(grad_norms: Numbers, *, weights: Numbers | None = None) -> Tensor:
    """Schedule that minimises the bound on the last step's loss: ``w_t * (sum of w_s for s > t)``, scaled to maximum 1.

    Args:
        grad_norms: Euclidean norms of the gradients of a run with SGD, step by step, best smoothed, ``[T]``, T >= 2; a
            norm of 0 counts as the smallest other.
        weights: w, ``[T]``; ``grad_norms ** -2`` if None. For Adam the paper takes ``1 / G`` with G the sums of
            absolute values.

    Returns:
        float64 ``[T]``, the last entry 0.

    Raises:
        ValueError: fewer than two norms, a negative or infinite one, only zeros, or weights that do not fit.
    """
    norms = _checked(grad_norms, "grad_norms")
    if weights is None:
        smallest = norms[norms > 0.0].min()
        w = (smallest / norms.clamp(min=smallest)).square()  # scaled, so that nothing overflows
    else:
        w = _checked(weights, "weights")
        if w.shape != norms.shape:
            raise ValueError(f"weights must have the {len(norms)} entries of grad_norms, got {len(w)}")
    later = w.flip(0).cumsum(0).flip(0).roll(-1)  # sum over s > t
    later[-1] = 0.0
    schedule = w * later
    if not schedule.max() > 0.0:
        raise ValueError("weights must have two entries above 0: the schedule is 0 everywhere")
    return schedule / schedule.max()


class LinearDecayLR(LRScheduler):
    """Lowers the learning rate linearly to 0, after a linear warm-up: what refinement gives for equal norms.

    Step t of T, the first being 0, with W steps of warm-up, has the full rate times ``(t + 1) / (W + 1)`` for t < W,
    then ``(T - t) / (T - W)``, and 0 from T on.

    Args:
        optimizer: its groups' ``lr`` are the full height.
        total_steps: T, in optimizer steps; `leyden.core.Method` fills in the length of the fit if None.
        warmup_steps: W in steps (int), or as a share of ``total_steps`` (float).
        last_epoch: number of the step before the first, as in `torch.optim.lr_scheduler`.

    Raises:
        ValueError: an argument is out of range, or nobody filled in ``total_steps``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        *,
        warmup_steps: int | float = 0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = _checked_steps(total_steps)
        if isinstance(warmup_steps, float) and not 0.0 <= warmup_steps < 1.0:
            raise ValueError(f"warmup_steps must be a share in [0.0, 1.0) or a number (an int), got {warmup_steps}")
        if isinstance(warmup_steps, int) and not 0 <= warmup_steps < self.total_steps:
            raise ValueError(f"warmup_steps must lie in 0..{self.total_steps - 1}, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group in the present step, from its number alone: nothing adds up."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        step, total, warmup = self.last_epoch, self.total_steps, self.warmup_steps
        if isinstance(warmup, float):
            warmup = int(warmup * total)
        factor = (step + 1) / (warmup + 1) if step < warmup else max(0, total - step) / (total - warmup)
        return [rate * factor for rate in self.base_lrs]


class RefinedLR(LRScheduler):
    """Multiplies the learning rate by a schedule of any length, stretched to the run.

    Args:
        optimizer: its groups' ``lr`` are the height where the schedule is 1.
        total_steps: T, in optimizer steps; `leyden.core.Method` fills in the length of the fit if None.
        schedule: two or more factors, such as `refined_schedule` gives, or a CSV file with a column ``schedule``, such
            as `leyden.callbacks.GradNormRecorder` writes. The first is that of the first step and the last that of the
            last; between them it is linear. From T on the rate stays.
        last_epoch: number of the step before the first, as in `torch.optim.lr_scheduler`.

    Raises:
        ValueError: an argument is out of range, nobody filled in ``total_steps``, or the file has no such column.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        *,
        schedule: Numbers | str | Path,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = _checked_steps(total_steps)
        factors = _read(Path(schedule)) if isinstance(schedule, str | Path) else schedule
        self.schedule: list[float] = _checked(factors, "schedule").tolist()
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group in the present step, from its number alone: nothing adds up."""
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        last = self.total_steps - 1
        place = min(self.last_epoch, last) * (len(self.schedule) - 1) / max(last, 1)
        left = min(math.floor(place), len(self.schedule) - 2)
        low, high = self.schedule[left], self.schedule[left + 1]
        factor = low + (place - left) * (high - low) if place < left + 1 else high
        return [rate * factor for rate in self.base_lrs]


def _checked(values: Numbers, name: str) -> Tensor:
    """As float64 ``[T]`` on the CPU."""
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must be two or more numbers in a row, got shape {tuple(values.shape)}")
    if not values.isfinite().all() or values.min() < 0.0 or values.max() == 0.0:
        raise ValueError(f"{name} must be finite, at least 0, and not all 0, got {values.min():g} to {values.max():g}")
    return values


def _checked_steps(total_steps: int | None) -> int:
    if total_steps is None or total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    return total_steps


def _read(path: Path) -> list[float]:
    if not path.is_file():
        raise ValueError(f"schedule must be a file or a list of numbers, and there is no file {path}")
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        if "schedule" not in (rows.fieldnames or []):
            raise ValueError(f"schedule: {path} has no column 'schedule', only {rows.fieldnames}")
        return [float(row["schedule"]) for row in rows]
