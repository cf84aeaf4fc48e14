"""A progress bar that is drawn by the clock."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["ProgressBar"]


class ProgressBar(RichProgressBar):
    """Lightning's Rich progress bar, which collects its numbers a few times a second instead of in every step.

    Args:
        refresh_rate: updates per second; 0 shows nothing.
    """

    def __init__(self, refresh_rate: int = 4) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._updated_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates bar and metrics when it is time, and at the end of an epoch."""
        now = time.monotonic()
        if trainer.is_last_batch or (now - self._updated_at) * self.refresh_rate >= 1.0:
            self._updated_at = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
