"""View-batch training (H. Kang, G. Seifer, D. Lee, J. Ryu, "Do Your Best and Get Enough Rest for Continual Learning",
CVPR 2025, arXiv 2503.18371, section 3)."""

from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms, require_keys
from leyden.data import DataModule, ViewAugment, ViewBatch
from leyden.losses import view_batch_loss

__all__ = ["ViewBatchTraining"]


class ViewBatchTraining(MethodCallback):
    """Trains on several views of a sample at once, and the longer not on it; adds ``view_batch``.

    The term draws the predictions for further views of a sample towards that for its first. The training data get the
    order `leyden.data.ViewBatch`, and their augmentation, if there is one, other random numbers in each view; give them
    a `leyden.data.ViewAugment` for stronger changes of the further ones.

    Args:
        views: V.
        weight: factor of the term.
        start_epoch: the term is added after this epoch, counted from 0.

    Raises:
        ValueError: ``views`` is below 2, or another argument is negative.
    """

    def __init__(self, views: int = 4, weight: float = 1.0, start_epoch: int = 5) -> None:
        if views < 2:
            raise ValueError(f"views must be at least 2, got {views}")
        for name, value in (("weight", weight), ("start_epoch", start_epoch)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.views = views
        self.weight = weight
        self.start_epoch = start_epoch
        self.order: ViewBatch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the data of a fit the order.

        Raises:
            MisconfigurationException: they are no `leyden.data.DataModule`, have an order already, or a process would
                not get all views of a sample.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        data = cast(Method, pl_module).datamodule
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"ViewBatchTraining orders the samples of a leyden.data.DataModule, got {type(data).__name__}"
            )
        same = isinstance(data.order, ViewBatch) and data.order.period == self.views  # of another such callback
        if data.order is not None and not same:
            raise MisconfigurationException(
                f"ViewBatchTraining has its own order, but the data have {type(data.order).__name__}: leave it out"
            )
        share = data.batch_size // (trainer.world_size * trainer.accumulate_grad_batches)
        if share % self.views:
            raise MisconfigurationException(
                f"views must divide the {share} samples that a process gets at a time, so that it has all views of a "
                f"sample, got {self.views}"
            )
        if not same:
            self.order = data.order = ViewBatch(self.views)
        if data.augment is not None and not isinstance(data.augment, ViewAugment):
            data.augment = ViewAugment(data.augment)

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

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``view_batch`` in the epochs that have it."""
        require_keys(batch, "index", user=type(self).__name__)
        if method.current_epoch <= self.start_epoch:
            return terms
        return terms | {"view_batch": self.weight * view_batch_loss(outputs.logits, batch["index"])}
