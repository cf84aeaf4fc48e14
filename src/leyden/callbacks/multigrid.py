"""Multigrid training (C.-Y. Wu, R. Girshick, K. He, C. Feichtenhofer, P. Kraehenbuehl, "A Multigrid Method for
Efficiently Training Video Models", CVPR 2020, arXiv 1912.00998, section 3)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.core import Batch, Method, MethodCallback
from leyden.data import (
    DataModule,
    MultigridBatchSampler,
    MultigridPhase,
    MultigridSchedule,
    multigrid_schedule,
    resample_grid,
    short_cycle_batch_sizes,
)

__all__ = ["Multigrid"]


class Multigrid(MethodCallback):
    """Trains on coarse grids in large batches and on fine ones in small batches, at a learning rate to match.

    The DataModule's ``batch_size`` and the optimizer's learning rate are those of usual training on the finest grid;
    see `leyden.data.multigrid_schedule`. All entries of a batch whose names begin with ``input`` are put on the grid of
    its step. The network must take inputs of any size; evaluation is on the finest grid. Only steps on the long cycle's
    grid move the running statistics of batch norms: the authors take those anew, on this grid, before an evaluation.
    For statistics of a constant number of rows, as the paper has them, add `GhostBatchNorm`.

    Args:
        shape: T frames and side S of the inputs; images have (1, S).
        milestones: epochs of usual training at which the learning rate is lowered.
        base_epochs: epochs of usual training; the schedule fills the trainer's ``max_epochs`` (1.5 times as many in the
            paper), and 1.5 times as many as these in a fit that has no last one.
        long_factors: (of T, of S), grid by grid from coarse to fine.
        short_factors: of S: the grids that steps take in turn, before that of the long cycle; may be none.
        gamma: factor of the learning rate at a milestone.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        milestones: Sequence[int],
        base_epochs: int,
        *,
        long_factors: Sequence[tuple[float, float]] = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0)),
        short_factors: Sequence[float] = (0.5, 0.5**0.5),
        gamma: float = 0.1,
    ) -> None:
        self.shape = shape
        self.short_factors = short_factors
        self.base_epochs = base_epochs
        self._make_schedule = partial(
            multigrid_schedule,
            milestones,
            base_epochs,
            shape,
            long_factors=long_factors,
            short_factors=short_factors,
            gamma=gamma,
        )
        self.schedule: MultigridSchedule = self._make_schedule()
        for phase in self.schedule.phases:
            self._batch_sizes(1, phase)  # checks them
        self._rates: list[list[float]] = []
        self._norms: list[tuple[_BatchNorm, float]] = []  # with their momentum
        self._sampler_class: partial[MultigridBatchSampler] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the schedule and chooses the sampler of a fit.

        Raises:
            MisconfigurationException: the data are no `leyden.data.DataModule`.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        data = cast(Method, pl_module).datamodule
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"Multigrid sets the batch sizes of a leyden.data.DataModule, got {type(data).__name__}"
            )
        epochs = trainer.max_epochs
        if epochs is not None and epochs > 0:
            self.schedule = self._make_schedule(epoch_factor=epochs / self.base_epochs)
        else:  # the fit has no last epoch
            self.schedule = self._make_schedule()
        sizes = [(phase.end_epoch, self._batch_sizes(data.batch_size, phase)) for phase in self.schedule.phases]
        self._sampler_class = data.sampler_class = partial(MultigridBatchSampler, batch_sizes=sizes)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the learning rates, before a checkpoint changes them, and the batch norms.

        Raises:
            MisconfigurationException: a schedule would set them too.
        """
        if trainer.lr_scheduler_configs:
            raise MisconfigurationException(
                "Multigrid sets the learning rate by its own schedule, but the method has one too: leave scheduler out"
            )
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        norms = (norm for norm in pl_module.modules() if isinstance(norm, _BatchNorm))
        self._norms = [(norm, norm.momentum) for norm in norms if norm.momentum is not None]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets the learning rates of the epoch, and whether the step counts in running statistics."""
        factor = self.schedule.lr_factor(trainer.current_epoch)
        for optimizer, rates in zip(trainer.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        self._set_momentum(coarse=self._place(cast(Method, pl_module)) < len(self.short_factors))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the batch norms their momentum back."""
        self._set_momentum(coarse=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the batch norms their momentum back, and the DataModule its sampler."""
        self._set_momentum(coarse=False)
        self._take_away(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the DataModule its sampler back."""
        self._take_away(trainer)

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Puts the inputs on the grid of the step.

        Raises:
            ValueError: they have another shape than was said.
        """
        frames, side = self.schedule.phase(method.current_epoch).shape
        place = self._place(method)
        if place < len(self.short_factors):
            side = max(1, round(self.shape[1] * self.short_factors[place]))
        return batch | {
            name: resample_grid(self._checked(name, tensor), (frames, side))
            for name, tensor in batch.items()
            if name.startswith("input")
        }

    def _take_away(self, trainer: Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, DataModule) and data.sampler_class is self._sampler_class:
            del data.sampler_class

    def _place(self, method: Method) -> int:
        return cast(MultigridBatchSampler, cast(DataModule, method.datamodule).sampler).place

    def _set_momentum(self, *, coarse: bool) -> None:
        for norm, momentum in self._norms:
            norm.momentum = 0.0 if coarse else momentum

    def _checked(self, name: str, input: Tensor) -> Tensor:
        frames, side = self.shape
        places = {4: (side, side), 5: (frames, side, side)}
        if tuple(input.shape[2:]) != places.get(input.ndim) or (input.ndim == 4 and frames != 1):
            raise ValueError(
                f"{name} must have {frames} frames of {side} x {side} (shape), as images [N, C, H, W] or videos "
                f"[N, C, T, H, W], got {tuple(input.shape)}"
            )
        return input

    def _batch_sizes(self, batch_size: int, phase: MultigridPhase) -> list[int]:
        return short_cycle_batch_sizes(
            batch_size * phase.batch_factor, phase.shape[1], self.shape[1], factors=self.short_factors
        )
