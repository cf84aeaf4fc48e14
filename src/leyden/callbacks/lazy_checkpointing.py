"""DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models, Maurya et al., 2024, arXiv 2406.10707."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LazyCheckpointing"]


class LazyCheckpointing(Callback):
    """Lets `leyden.plugins.LazyAsyncCheckpointIO` copy weights and optimizer states during the step after a checkpoint.

    They are all copied when the next optimizer step, validation or end of the fit begins. Only checkpoints that are
    saved between steps of automatic optimization can wait so: those of a validation, and of methods that step
    their optimizers themselves, are copied at once. A file that could not be written stops the fit in the next step;
    the one before it is intact.

    Attributes:
        stall_seconds: time that the fit has waited for copies and writes since it began, without the calls that save.
    """

    def __init__(self) -> None:
        self.stall_seconds = 0.0
        self._io: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the plug-in, and moves to the front of the callbacks: to wait before another changes weights.

        Raises:
            MisconfigurationException: it is not among the trainer's plug-ins.
        """
        checkpoint_io = trainer.strategy.checkpoint_io
        if not hasattr(checkpoint_io, "wait_for_snapshot"):
            raise MisconfigurationException(
                "LazyCheckpointing needs leyden.plugins.LazyAsyncCheckpointIO in trainer.plugins, but checkpoints are "
                f"written by {type(checkpoint_io).__name__}"
            )
        self._io = checkpoint_io
        # a new list, because Lightning is going through the present one
        trainer.callbacks = [self, *(cb for cb in trainer.callbacks if cb is not self)]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the time to 0."""
        self.stall_seconds = 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says what can be copied later."""
        if trainer.is_global_zero and trainer.training and pl_module.automatic_optimization:
            states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
            moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
            self._io.copy_later([*pl_module.parameters(), *moments])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Waits for the copies."""
        self._wait(self._io.wait_for_snapshot)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the copies: weights may be exchanged."""
        self._wait(self._io.wait_for_snapshot)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits until all checkpoints are published."""
        self._wait(self._io.wait)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Waits until all checkpoints are published; what goes wrong there must not hide the exception."""
        if self._io is None:  # it is the exception of `setup`
            return
        try:
            self._wait(self._io.wait)
        except (OSError, RuntimeError) as error:
            rank_zero_warn(str(error))

    def _wait(self, wait: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
            wait()
        finally:
            self.stall_seconds += time.perf_counter() - began
