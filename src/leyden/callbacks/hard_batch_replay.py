"""Training on the batches with the highest losses (S. Sahayam, J. Zakkam, U. Jayaraman, "Can we learn better with hard
samples?", 2023, arXiv 2304.03486; authors' code: imjohnzakkam/DyBAT, ``run.py``)."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks._order import BringsOrder
from leyden.core.distributed import all_reduce_mean
from leyden.data.hard_batches import HardBatches, hardest_batches
from leyden.data.module import DataModule
from leyden.data.sampler import GlobalBatchSampler

__all__ = ["HardBatchReplay"]


class HardBatchReplay(BringsOrder):
    """Trains on all batches in the first epoch, and on those with the highest losses in each later one.

    The batches stay the same in all epochs; see `leyden.data.HardBatches`. A batch that is left out keeps the loss that
    it had, so that it comes again when the others have become easier. The loss is that of the step, with all terms,
    averaged over processes and micro-batches. Wrong labels are hard too, and come again and again.

    An epoch after the first has ``delta`` times as many steps: to train for as many steps as without, set the
    trainer's ``max_steps``, and more epochs than are needed. Schedules count on ``max_steps`` too. ``train/replayed``
    is the number of batches of an epoch that were trained on again.

    Args:
        delta: share of the batches in a later epoch, in (0, 1]; the authors tried 0.2, 0.5 and 0.8.

    Raises:
        ValueError: ``delta`` is out of range.
    """

    order: HardBatches

    def __init__(self, delta: float = 0.5) -> None:
        hardest_batches(torch.zeros(1), delta)  # checks it
        self.delta = delta
        self._loss = torch.zeros(())  # of the micro-batches of a step

    def make_order(self, trainer: Trainer, data: DataModule) -> HardBatches:
        """Returns the order of a fit.

        Raises:
            MisconfigurationException: the last batch is smaller.
        """
        if not data.drop_last and data.num_samples % data.batch_size:
            raise MisconfigurationException(
                f"HardBatchReplay trains on whole batches again, but of {data.num_samples} samples in batches of "
                f"{data.batch_size} the last is smaller: set data.drop_last to true"
            )
        return HardBatches(data.batch_size, delta=self.delta)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that no other callback makes the batches.

        Raises:
            MisconfigurationException: one does.
        """
        maker = cast(Any, trainer).datamodule.sampler_class
        if maker is not GlobalBatchSampler:
            raise MisconfigurationException(
                f"HardBatchReplay trains on the same batches again, but {getattr(maker, 'func', maker).__name__} makes "
                "others: remove one of the two"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the loss of a step.

        Raises:
            MisconfigurationException: the step has none, or the size of the batches was changed.
        """
        if not outputs or "loss" not in outputs:
            raise MisconfigurationException(
                f"HardBatchReplay compares batches by their loss, but {type(pl_module).__name__} returns none from its "
                "training_step"
            )
        size = cast(GlobalBatchSampler, cast(Any, trainer).datamodule.sampler).batch_size
        if size != self.order.batch_size:
            raise MisconfigurationException(
                f"HardBatchReplay trains on the same batches of {self.order.batch_size} samples again, but their size "
                f"was set to {size}"
            )
        step, micro = divmod(batch_idx, trainer.accumulate_grad_batches)
        loss = outputs["loss"].detach()  # divided by the number of micro-batches
        self._loss = self._loss + loss if micro else loss
        if micro == trainer.accumulate_grad_batches - 1:
            self.order.record(step, all_reduce_mean(self._loss))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs how many batches were trained on again."""
        replayed = float(len(self.order.chosen) if trainer.current_epoch > 0 else 0)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        for logger in trainer.loggers:  # not by `log`, which would wait for other processes in the middle of the hook
            logger.log_metrics({"train/replayed": replayed, "epoch": trainer.current_epoch}, step=step)

    def state_dict(self) -> dict[str, Any]:
        """The batches and their losses."""
        return self.order.state_dict() if self.order is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them; without a fit there are none."""
        if self.order is not None:
            self.order.load_state_dict(state_dict)
