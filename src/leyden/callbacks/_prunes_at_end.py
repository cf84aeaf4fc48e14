"""What callbacks share that prune when training has ended."""

from abc import abstractmethod
from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from leyden.core import Method, MethodCallback

__all__ = ["PrunesAtEnd"]


class PrunesAtEnd(MethodCallback):
    """Prunes at the end of a fit, and again before evaluations, which may have loaded a checkpoint of training."""

    @abstractmethod
    def prune(self, trainer: Trainer, method: Method) -> None:
        """Sets weights to zero; a second call changes nothing."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes what `EMA` and others have left in the module when training ended."""
        self.prune(trainer, cast(Method, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes, unless it is a validation within a fit."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.prune(trainer, cast(Method, pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes."""
        self.prune(trainer, cast(Method, pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes."""
        self.prune(trainer, cast(Method, pl_module))
