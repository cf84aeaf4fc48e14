"""Callbacks with a moving average of the network beside it."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from leyden.core import Method, MethodCallback
from leyden.nn import EMATeacher

__all__ = ["FollowsNetwork"]


class FollowsNetwork(MethodCallback):
    """Keeps ``teacher``, a saved average of the network that moves after every optimizer step.

    Args:
        decay: share of the old average that is kept; buffers are copied.

    Raises:
        ValueError: ``decay`` lies outside of [0, 1].
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.decay = decay
        self.teacher: EMATeacher | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the network, in the first fit."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, Method)
        if stage == "fit":
            self.teacher = self.teacher or EMATeacher(pl_module.network, decay=self.decay)
            pl_module.attach_frozen(self.state_key, self.teacher, save=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step from which the fit goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average, if the optimizer made a step."""
        assert self.teacher is not None
        assert isinstance(pl_module, Method)
        if trainer.global_step != self._step:  # else gradients are still being accumulated
            self._step = trainer.global_step
            self.teacher.update(pl_module.network, self._step)
