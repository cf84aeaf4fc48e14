"""Callbacks with two more doors: the batch before the step, and the loss terms after it."""

from typing import TYPE_CHECKING
from zlib import crc32

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core.batch import Batch, Terms
from leyden.core.network import Outputs

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["MethodCallback", "NumberedCallback"]


class NumberedCallback(Callback):
    """A callback whose saved state is told apart from that of others of its class by its number among them.

    The first is ``EMA``, the second ``EMA_2``: in the order of the trainer's list, whatever their arguments, so that a
    run resumed with a changed argument still finds its state. An overriding `setup` calls ``super().setup``.
    """

    _state_key: str | None = None

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint; unique, but good for this object only, before `setup`."""
        return self._state_key or f"{type(self).__qualname__}@{id(self)}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the number."""
        alike = [id(callback) for callback in trainer.callbacks if type(callback) is type(self)]  # type: ignore[attr-defined]
        number = alike.index(id(self)) + 1
        self._state_key = type(self).__qualname__ + (f"_{number}" if number > 1 else "")


class MethodCallback(NumberedCallback):
    """A callback that may change the batch and the loss of a `Method`'s training steps.

    Validation, test and prediction never call the two doors. Trainable parts are attached in `build` by
    ``method.attach``, teachers by ``method.attach_frozen``; state that outlives a step goes into ``state_dict``.
    """

    _built_for: "Method | None" = None

    def build(self, method: "Method") -> None:
        """Makes what the callback needs: attaches modules, replaces layers, sizes memories, asks for taps.

        Called once per method, before the optimizer is made and a checkpoint is read, also if the first thing to be run
        is a test. ``method.trainer`` and ``method.datamodule`` are there.
        """

    def transform_batch(self, method: "Method", batch: Batch) -> Batch:
        """Returns the batch that the step uses; does not write into the one it gets."""
        return batch

    def loss_terms(self, method: "Method", batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Returns the terms to be summed: usually ``terms | {"name": value}``; may also rescale or replace."""
        return terms

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the module is a `Method`, and calls `build` if it is a new one.

        Raises:
            MisconfigurationException: it is another LightningModule, which would never call the doors.
        """
        from leyden.core.method import Method

        if not isinstance(pl_module, Method):
            raise MisconfigurationException(
                f"{type(self).__name__} changes the training step of a leyden.core.Method, but the module is a "
                f"{type(pl_module).__name__}: derive it from Method or use one of leyden.methods"
            )
        super().setup(trainer, pl_module, stage)
        if self._built_for is not pl_module:
            self._built_for = pl_module
            # New weights depend on seed and name alone: by now, one process has drawn more numbers than each of many.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(torch.initial_seed() + crc32(self.state_key.encode()))
                self.build(pl_module)
