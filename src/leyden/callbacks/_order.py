"""Callbacks that bring the order of the training samples."""

from abc import abstractmethod

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core.callback import NumberedCallback
from leyden.data.module import DataModule
from leyden.data.poisson import PoissonBatchSampler
from leyden.data.sampler import Order

__all__ = ["BringsOrder", "total_steps"]


class BringsOrder(NumberedCallback):
    """Gives the DataModule an order for the time of a fit."""

    order: Order | None = None

    @abstractmethod
    def make_order(self, trainer: Trainer, data: DataModule) -> Order:
        """Returns the order of a fit, which may be asked before the optimizer is made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the order, before the training loader is made.

        Raises:
            MisconfigurationException: the data are no `leyden.data.DataModule`, or something else orders the samples.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        name, data = type(self).__name__, getattr(trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"{name} orders the samples of a leyden.data.DataModule, got {type(data).__name__}"
            )
        if data.sampler_class is PoissonBatchSampler:
            raise MisconfigurationException(f"{name} orders the samples, but Poisson sampling draws them in each step")
        if data.order is not None:
            raise MisconfigurationException(
                f"{name} orders the samples, but the DataModule has an order already ({type(data.order).__name__}): "
                "remove one of the two"
            )
        self.order = data.order = self.make_order(trainer, data)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the order away."""
        self._take_away(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the order away."""
        self._take_away(trainer)

    def _take_away(self, trainer: Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule) and data.order is self.order:
            data.order = None


def total_steps(trainer: Trainer, data: DataModule) -> int:
    """Optimizer steps of a fit, without its loader, which needs the order; ``limit_train_batches`` does not count.

    Raises:
        MisconfigurationException: the fit has no end.
    """
    per_epoch = data.num_samples // data.batch_size if data.drop_last else -(-data.num_samples // data.batch_size)
    limits = [trainer.max_epochs * per_epoch] if trainer.max_epochs not in (None, -1) else []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    if not limits:
        raise MisconfigurationException(
            "an order that changes with the progress of the training needs its end: set trainer.max_epochs or max_steps"
        )
    return max(1, min(limits))
