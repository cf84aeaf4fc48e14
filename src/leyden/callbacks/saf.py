"""Sharpness-aware training for free (J. Du, D. Zhou, J. Feng, V. Y. F. Tan, J. T. Zhou, "Sharpness-Aware Training for
Free", 2022, arXiv 2205.14083): the trajectory loss against one's own past outputs (SAF) or an average's (MESA)."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from leyden.callbacks._follows_network import FollowsNetwork
from leyden.callbacks._sample_memory import is_mixed, num_samples_and_classes
from leyden.core import (
    Batch,
    Method,
    MethodCallback,
    Outputs,
    SampleMemory,
    Terms,
    all_reduce_sum,
    require_keys,
    world_size,
)
from leyden.losses import trajectory_loss

__all__ = ["MESA", "SAF"]


class SAF(MethodCallback):
    """Adds ``saf``, the trajectory loss against what the network said of the same samples ``delay`` epochs ago.

    Samples that were left out of that epoch are left out of the mean; so are batches with mixed inputs.

    Args:
        weight: factor of the term.
        temperature: as in `leyden.losses.trajectory_loss`.
        delay: age of the outputs that are compared with, in epochs.
        start_epoch: the term is added after this epoch, counted from 0.
        end_epoch: the term is added before this epoch; to the end if None.

    Raises:
        ValueError: an argument is out of range, or outputs would be needed from before the first epoch.
    """

    def __init__(
        self,
        weight: float = 0.3,
        temperature: float = 5.0,
        delay: int = 3,
        start_epoch: int = 5,
        end_epoch: int | None = None,
    ) -> None:
        _check(weight, temperature, start_epoch, end_epoch)
        if not 1 <= delay <= start_epoch + 1:
            raise ValueError(f"delay must lie in 1..start_epoch + 1 = {start_epoch + 1}, got {delay}")
        self.weight = weight
        self.temperature = temperature
        self.delay = delay
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        # logits [S, C] of the last delay + 1 epochs, those of epoch e in place e % (delay + 1)
        self.past: list[SampleMemory] = []
        self._batch_is_new = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the memory of a fit.

        Raises:
            MisconfigurationException: the DataModule does not say how many samples and classes there are.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            sizes = num_samples_and_classes(trainer, user="SAF")
            self.past = [SampleMemory(*sizes) for _ in range(self.delay + 1)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the place of the oldest epoch to this one."""
        self._at(trainer.current_epoch).written.zero_()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lets the next `loss_terms` write: an optimizer may evaluate the loss several times, at other weights."""
        self._batch_is_new = True

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``saf`` in the epochs that have it."""
        require_keys(batch, "index", user="SAF")
        if is_mixed(batch, user="SAF"):
            return terms
        epoch = method.current_epoch
        if self._batch_is_new and _is_active(epoch + self.delay, self.start_epoch, self.end_epoch):
            self._at(epoch).write(batch["index"], outputs.logits)
            self._batch_is_new = False
        if not _is_active(epoch, self.start_epoch, self.end_epoch):
            return terms
        past, known = self._at(epoch - self.delay).read(batch["index"])  # [N, C], [N]
        losses = trajectory_loss(outputs.logits, past, temperature=self.temperature, reduction="none")
        # the mean over all processes, of which DDP takes the mean again
        mean = world_size() * (losses * known).sum() / all_reduce_sum(known.sum()).clamp(min=1)
        return terms | {"saf": self.weight * mean}

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return {"past": [memory.state_dict() for memory in self.past]} if self.past else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the memory; without a fit there is none.

        Raises:
            ValueError: it was saved with another ``delay``, or for other data.
        """
        if not self.past:
            return
        if len(state_dict["past"]) != len(self.past):
            raise ValueError(f"SAF was saved with delay={len(state_dict['past']) - 1}, this run has delay={self.delay}")
        for memory, state in zip(self.past, state_dict["past"], strict=True):
            memory.load_state_dict(state)

    def _at(self, epoch: int) -> SampleMemory:
        return self.past[epoch % (self.delay + 1)]


class MESA(FollowsNetwork):
    """Adds ``mesa``, the trajectory loss against the outputs of a moving average of the network for the same batch.

    Args:
        weight: factor of the term.
        temperature: as in `leyden.losses.trajectory_loss`.
        decay: share of the old average that is kept after each optimizer step; buffers are copied.
        start_epoch: the term is added after this epoch, counted from 0.
        end_epoch: the term is added before this epoch; to the end if None.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        weight: float = 0.8,
        temperature: float = 5.0,
        decay: float = 0.9998,
        start_epoch: int = 5,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__(decay)
        _check(weight, temperature, start_epoch, end_epoch)
        self.weight = weight
        self.temperature = temperature
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``mesa`` in the epochs that have it."""
        if not _is_active(method.current_epoch, self.start_epoch, self.end_epoch):
            return terms
        assert self.teacher is not None
        past = self.teacher(batch["input"])  # [N, C]
        loss = trajectory_loss(outputs.logits, past, temperature=self.temperature)
        return terms | {"mesa": self.weight * loss}


def _is_active(epoch: int, start_epoch: int, end_epoch: int | None) -> bool:
    return start_epoch < epoch and (end_epoch is None or epoch < end_epoch)


def _check(weight: float, temperature: float, start_epoch: int, end_epoch: int | None) -> None:
    if weight < 0.0:
        raise ValueError(f"weight must be at least 0, got {weight}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if start_epoch < -1:
        raise ValueError(f"start_epoch must be at least -1 (the term from the first epoch on), got {start_epoch}")
    if end_epoch is not None and end_epoch <= start_epoch + 1:
        raise ValueError(f"end_epoch must be above start_epoch + 1 = {start_epoch + 1}, got {end_epoch}")
