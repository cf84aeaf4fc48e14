"""What callbacks share that change the outputs of a trained network."""

from abc import abstractmethod
from collections.abc import Callable
from typing import cast

from lightning.pytorch import LightningModule, Trainer

from leyden.core import Batch, Method, MethodCallback, Outputs

__all__ = ["ChangesOutputs"]


class ChangesOutputs(MethodCallback):
    """Puts a function in the place of the method's ``compute`` during test and prediction."""

    @abstractmethod
    def begin(self, method: Method) -> Callable[[Batch], Outputs]:
        """Returns the function; ``method.compute`` is still the method's own."""

    def start(self, method: Method) -> None:
        """Puts the function in its place."""
        vars(method)["compute"] = self.begin(method)

    def end(self, method: Method) -> None:
        """Takes it away, if it is there."""
        vars(method).pop("compute", None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes part in the test."""
        self.start(cast(Method, pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes part in the prediction."""
        self.start(cast(Method, pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes no more part."""
        self.end(cast(Method, pl_module))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes no more part."""
        self.end(cast(Method, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes no more part."""
        self.end(cast(Method, pl_module))
