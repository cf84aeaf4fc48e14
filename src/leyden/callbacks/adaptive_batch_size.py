"""Batches that grow with the noise of the gradient (T. T.-K. Lau, H. Liu, M. Kolar, "AdAdaGrad: Adaptive Batch Size
Schemes for Adaptive Gradient Methods", 2024, arXiv 2402.11215). Original code: timlautk/AdAdaGrad, ``main.py``."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from leyden.callbacks._measuring import measuring
from leyden.callbacks._needed_batch_size import flat_rows, size_by_inner_product, size_by_norm
from leyden.callbacks._per_sample_gradients import per_sample_gradients
from leyden.callbacks.norm_test import pool_shards
from leyden.core import Batch, Method, MethodCallback, Outputs, Terms
from leyden.core.distributed import all_gather_rows, all_reduce_mean, all_reduce_sum, is_sharded, world_size
from leyden.data.module import DataModule
from leyden.data.sampler import GlobalBatchSampler
from leyden.optim.lr_scaling import scale_lr

__all__ = ["AdaptiveBatchSize", "BatchPlan", "plan_batch"]

_NUMBERS = 2**25  # of the gradients per sample that are held at once


class BatchPlan(NamedTuple):
    """How a batch is shared: ``batch_size = micro_batch_size * accumulate * world_size``."""

    micro_batch_size: int
    accumulate: int
    batch_size: int


def plan_batch(
    batch_size: int,
    *,
    world_size: int = 1,
    max_micro_batch_size: int | None = None,
    max_batch_size: int | None = None,
    multiple_of: int = 1,
    accumulate: int = 1,
) -> BatchPlan:
    """Shares a batch among processes by micro-batches that are as large as they may be, and few.

    The size is rounded up to what can be shared, so it is the same on any number of processes that divides
    ``multiple_of``. (The original code rounds up further where that gives larger micro-batches, and keeps a history.)

    Args:
        batch_size: samples that an optimizer step should have.
        world_size: number of processes.
        max_micro_batch_size: most samples that one process takes at once; no limit if None.
        max_batch_size: most samples of a step, to which the size is rounded down; no limit if None.
        multiple_of: the size is a multiple of it.
        accumulate: least number of micro-batches.

    Raises:
        ValueError: an argument is below 1, or the least batch is larger than ``max_batch_size``.
    """
    limits = {"max_micro_batch_size": max_micro_batch_size, "max_batch_size": max_batch_size}
    counts = {"batch_size": batch_size, "world_size": world_size, "multiple_of": multiple_of, "accumulate": accumulate}
    for name, value in (counts | limits).items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    unit = math.lcm(multiple_of, world_size * accumulate)
    units = -(-batch_size // unit)
    if max_batch_size is not None:
        units = min(units, max_batch_size // unit)
        if units == 0:
            raise ValueError(
                f"max_batch_size must be at least {unit}, the least that can be shared, got {max_batch_size}"
            )
    share = units * unit // world_size
    least = max(accumulate, -(-share // (max_micro_batch_size or share)))
    accumulate = next(parts for parts in range(least, share + 1) if share % parts == 0)
    return BatchPlan(share // accumulate, accumulate, units * unit)


class AdaptiveBatchSize(MethodCallback):
    """Tests the gradient of a step, and takes as many samples from the next step on as would have passed.

    The batch never shrinks. Its size is a multiple of the one that the run began with, and what is known of it is
    pooled, so that it grows alike on any number of processes. Micro-batches grow first; when they are as large as they
    may be, more of them are accumulated. Logs ``train/batch_size``, ``train/needed_batch_size`` (what the last test
    found, before rounding) and ``train/samples_seen``, with which the steps of such a run are better compared.

    The gradients are those of the method's own loss on each sample by itself, in evaluation mode (batch norm has its
    running statistics, and there is no dropout) and at least in float32. A test costs about as much as a step, and
    memory for 33 million numbers more; nothing is tested when the batch is as large as it may be.

    Args:
        test: ``"norm"``, ``"inner_product"`` or ``"augmented"``: see `norm_test` and `inner_product_test`.
        eta: largest relative error of the gradient (``"norm"``). Smaller is stricter: half of it asks for 4 times the
            samples, and the batch may be as large as it can be within a few steps.
        theta: largest relative error of products with the gradient (the other two).
        nu: largest relative part orthogonal to the gradient (``"augmented"``).
        interval: optimizer steps from one test to the next.
        max_micro_batch_size: most samples that one process takes at once; if None, micro-batches alone grow.
        max_batch_size: most samples of an optimizer step, over all processes; the training set if None. An epoch drops
            its last, smaller batch, so leave this well below the size of the training set.
        coordinatewise: whether every coordinate must pass the norm test by itself.
        lr_rule: how the learning rate follows the size: ``"linear"`` or ``"sqrt"``, see `leyden.optim.scale_lr`; not at
            all if None.
        schedule: what the learning-rate schedule counts: ``"samples"`` advances it once for as many samples as the
            first batch had, so that it ends with the epochs; ``"steps"`` once for each optimizer step.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        test: str = "norm",
        eta: float = 0.1,
        theta: float = 0.1,
        nu: float = 0.1,
        interval: int = 1,
        max_micro_batch_size: int | None = None,
        max_batch_size: int | None = None,
        coordinatewise: bool = False,
        *,
        lr_rule: str | None = None,
        schedule: str = "samples",
    ) -> None:
        if test not in ("norm", "inner_product", "augmented"):
            raise ValueError(f"test must be 'norm', 'inner_product' or 'augmented', got {test!r}")
        for name, value in (("eta", eta), ("theta", theta), ("nu", nu)):
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, count in (
            ("interval", interval),
            ("max_micro_batch_size", max_micro_batch_size),
            ("max_batch_size", max_batch_size),
        ):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if coordinatewise and test != "norm":
            raise ValueError(f"coordinatewise is a form of the test 'norm', but test is {test!r}")
        if lr_rule not in (None, "linear", "sqrt"):
            raise ValueError(f"lr_rule must be 'linear', 'sqrt' or None, got {lr_rule!r}")
        if schedule not in ("samples", "steps"):
            raise ValueError(f"schedule must be 'samples' or 'steps', got {schedule!r}")
        self.test = test
        self.eta = eta
        self.theta = theta
        self.nu = nu
        self.interval = interval
        self.max_micro_batch_size = max_micro_batch_size
        self.max_batch_size = max_batch_size
        self.coordinatewise = coordinatewise
        self.lr_rule = lr_rule
        self.schedule = schedule
        self.samples_seen = 0
        self._needed = 0.0
        self._first_accumulate = 1
        self._step = 0
        self._batches: list[Batch] = []  # of a step that is tested

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the data.

        Raises:
            MisconfigurationException: they are no `leyden.data.DataModule`, or their batches cannot grow so.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        data, accumulate = cast(Method, pl_module).datamodule, trainer.accumulate_grad_batches
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"AdaptiveBatchSize resizes the batches of a leyden.data.DataModule, got {type(data).__name__}"
            )
        if data.batch_size < 2:
            raise MisconfigurationException(
                "AdaptiveBatchSize compares the gradients of a batch, but batches of 1 sample have nothing to compare: "
                "set data.batch_size to 2 or more"
            )
        if not data.drop_last and (trainer.world_size * accumulate > 1 or self.max_micro_batch_size is not None):
            raise MisconfigurationException(
                "AdaptiveBatchSize cannot share the last, smaller batch of an epoch equally: set data.drop_last to true"
            )
        if self.max_batch_size is not None and self.max_batch_size < data.batch_size:
            raise MisconfigurationException(
                f"max_batch_size={self.max_batch_size} is below the batch size that the run begins with: "
                f"{data.batch_size}"
            )
        micro = data.batch_size // (trainer.world_size * accumulate)
        if self.max_micro_batch_size is not None and self.max_micro_batch_size < micro:
            raise MisconfigurationException(
                f"max_micro_batch_size={self.max_micro_batch_size} is below the {micro} samples that a process takes "
                "at first: raise trainer.accumulate_grad_batches or lower data.batch_size"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks how the steps are made.

        Raises:
            MisconfigurationException: the trainer does not make them, parameters are sharded, or another callback has
                batches of fixed sizes.
        """
        data = cast(DataModule, cast(Method, pl_module).datamodule)
        maker: Any = data.order if hasattr(data.order, "batch_size") else data.sampler_class
        if maker is not GlobalBatchSampler:
            name = getattr(getattr(maker, "func", maker), "__name__", type(maker).__name__)
            raise MisconfigurationException(
                f"AdaptiveBatchSize resizes the batches, but {name} makes them of fixed sizes: remove one of the two"
            )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"AdaptiveBatchSize tests the gradient of the loss, but {type(pl_module).__name__} makes its optimizer "
                "steps itself"
            )
        if is_sharded(pl_module.parameters()):
            raise MisconfigurationException(
                "AdaptiveBatchSize differentiates by whole parameters, but these are sharded: train on one device or "
                "with DDP"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shares the batches of a resumed run as before."""
        if trainer.global_step == 0:
            self.samples_seen, self._needed = 0, 0.0
        self._step = trainer.global_step
        self._batches = []
        self._first_accumulate = trainer.accumulate_grad_batches
        data = cast(DataModule, cast(Method, pl_module).datamodule)
        plan = self._plan(data, cast(GlobalBatchSampler, data.sampler).batch_size)
        data.set_batch_size(plan.batch_size, plan.accumulate)

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Keeps the batch, as the step got it, if the step is tested."""
        if (method.global_step + 1) % self.interval == 0 and not self._is_largest(method):
            self._batches.append(batch)
        return terms

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Makes the test, before the weights change."""
        batches, self._batches = self._batches, []
        if batches:
            method = cast(Method, pl_module)
            with measuring(trainer, method):
                self._needed = self._test(method, batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """After an optimizer step, advances the schedule, logs, and resizes the batches to come."""
        self.samples_seen += len(batch["index"]) * world_size()
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        method = cast(Method, pl_module)
        data = cast(DataModule, method.datamodule)
        size = cast(GlobalBatchSampler, data.sampler).batch_size
        if self.schedule == "samples":
            for config in (c for c in trainer.lr_scheduler_configs if c.interval == "step" and not c.reduce_on_plateau):
                for _ in range(size // data.batch_size - 1):  # the trainer has made one
                    cast(Any, config.scheduler).step()
        if method._is_logged_step():
            values = {"batch_size": size, "needed_batch_size": self._needed, "samples_seen": self.samples_seen}
            method.log_dict({f"train/{name}": float(value) for name, value in values.items()})
        if self._needed > size and not self._is_largest(method):
            plan = self._plan(data, self._needed)
            data.set_batch_size(plan.batch_size, plan.accumulate)
            if self.lr_rule is not None:
                _scale_lr(trainer, scale_lr(1.0, plan.batch_size, size, rule=self.lr_rule))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the trainer as it was."""
        trainer.accumulate_grad_batches = self._first_accumulate

    def state_dict(self) -> dict[str, Any]:
        """The samples seen and what the last test found; the size is in the state of the loader."""
        return {"samples_seen": self.samples_seen, "needed": self._needed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.samples_seen, self._needed = state_dict["samples_seen"], state_dict["needed"]

    def _plan(self, data: DataModule, needed: float) -> BatchPlan:
        limit = self._limit(data)
        return plan_batch(
            math.ceil(min(needed, limit)),
            world_size=world_size(),
            max_micro_batch_size=self.max_micro_batch_size,
            max_batch_size=limit,
            multiple_of=data.batch_size,
            accumulate=self._first_accumulate,
        )

    def _limit(self, data: DataModule) -> int:
        limit = min(self.max_batch_size or data.num_samples, data.num_samples)
        return limit // data.batch_size * data.batch_size

    def _is_largest(self, method: Method) -> bool:
        data = cast(DataModule, method.datamodule)
        return cast(GlobalBatchSampler, data.sampler).batch_size >= self._limit(data)

    def _test(self, method: Method, batches: list[Batch]) -> float:
        """Batch size that would have passed."""
        size, mean, variance = 0, torch.zeros(()), torch.zeros(())
        for rows in _rows(method, batches):
            more_variance, more_mean = torch.var_mean(rows, dim=0, correction=1 if len(rows) > 1 else 0)
            if size:
                sizes = torch.tensor([size, len(rows)])
                mean, variance = pool_shards(
                    torch.stack([mean, more_mean]), torch.stack([variance, more_variance]), sizes
                )
            else:
                mean, variance = more_mean, more_variance
            size += len(rows)
        # the processes have equal shares; not `pool_shards`, which would need all of them at once
        local, mean = mean, all_reduce_mean(mean)
        if self.test == "norm":
            squares = all_reduce_sum((size - 1) * variance + size * (local - mean).square())
            variance = squares / max(size * world_size() - 1, 1)
            return size_by_norm(mean, variance, eta=self.eta, coordinatewise=self.coordinatewise)[0]
        products, norms = [], []
        for rows in _rows(method, batches):
            products.append(rows @ mean)
            norms.append(rows.square().sum(1))
        return size_by_inner_product(
            all_gather_rows(torch.cat(products)),
            all_gather_rows(torch.cat(norms)),
            mean,
            theta=self.theta,
            nu=self.nu if self.test == "augmented" else None,
        )[0]


def _rows(method: Method, batches: list[Batch]) -> Iterator[Tensor]:
    """Gradients of some samples after the others, all parameters in a row, ``[n, D]``."""
    num_numbers = sum(p.numel() for p in method.parameters() if p.requires_grad)
    for batch in batches:
        for part in zip(*(value.split(max(1, _NUMBERS // num_numbers)) for value in batch.values()), strict=True):
            yield flat_rows(per_sample_gradients(method, dict(zip(batch, part, strict=True))).values())


def _scale_lr(trainer: Trainer, factor: float) -> None:
    """Multiplies learning rates, and those that schedules start from."""
    for group in trainer.optimizers[0].param_groups:
        for name in {"lr", "initial_lr"} & group.keys():
            group[name] *= factor
    for config in trainer.lr_scheduler_configs:
        scheduler = cast(Any, config.scheduler)
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
