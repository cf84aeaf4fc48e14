"""Gradient norms of a run, from which the schedule of the next is made (A. Defazio, A. Cutkosky, H. Mehta,
K. Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement", 2023, algorithm 1)."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from leyden.core.callback import NumberedCallback
from leyden.core.replace_file import replace_file
from leyden.optim.refined_schedule import refined_schedule, smooth_grad_norms

__all__ = ["GradNormRecorder"]


class GradNormRecorder(NumberedCallback):
    """Records the norm of the whole gradient in every optimizer step, and writes norms and refined schedule at the end.

    The norm is that of the gradient as it is before clipping: accumulated, unscaled and averaged over processes. The
    file has the columns ``grad_norm`` and ``schedule``; `leyden.optim.RefinedLR` reads it. Steps with
    an infinite gradient, which a scaler leaves out, are not in it.

    Args:
        norm: ``"l2"`` for SGD (weights ``1 / G ** 2``) or ``"l1"`` for Adam (weights ``1 / G``).
        tau: width of the median that smooths the norms before the schedule is made, as a share of the run.
        path: the file; ``grad_norms.csv`` under the trainer's ``default_root_dir`` if None.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, norm: str = "l2", tau: float = 0.1, *, path: str | None = None) -> None:
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        self.norm = norm
        self.tau = tau
        self.path = path
        self._norms = torch.zeros(0)  # float32, with room for more
        self._count = 0

    @property
    def norms(self) -> Tensor:
        """What was recorded, float32 ``[T]``."""
        return self._norms[: self._count]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that there is one optimizer, whose gradient is the whole one.

        Raises:
            MisconfigurationException: there are more.
        """
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"GradNormRecorder records the gradient of one optimizer, but there are {len(trainer.optimizers)}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier fit, of which this one is no continuation."""
        if trainer.global_step == 0:
            self._count = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Records a norm, without waiting for the device."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        value: Any = get_total_norm(grads, 1.0 if self.norm == "l1" else 2.0)
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        if self._norms.device != value.device:
            self._norms = self._norms.to(value.device)
        if self._count == len(self._norms):
            self._norms = torch.cat([self._norms, self._norms.new_zeros(max(1024, len(self._norms)))])
        self._norms[self._count] = value
        self._count += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, if there were two steps or more."""
        norms = self.norms[self.norms.isfinite()].double().cpu()
        if not trainer.is_global_zero or len(norms) < 2:
            return
        smooth = smooth_grad_norms(norms, self.tau)
        schedule = refined_schedule(smooth if self.norm == "l2" else smooth.sqrt())  # weights 1 / G ** 2 or 1 / G
        path = Path(self.path or Path(trainer.default_root_dir) / "grad_norms.csv")
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["grad_norm", "schedule"])
        writer.writerows(zip(norms.tolist(), schedule.tolist(), strict=True))
        with replace_file(path) as file:
            file.write(text.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        """The norms so far."""
        return {"norms": self.norms.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after them."""
        self._norms = state_dict["norms"].clone()
        self._count = len(self._norms)
