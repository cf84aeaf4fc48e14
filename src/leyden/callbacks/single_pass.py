"""One pass over fresh data (A. Komatsuzaki, "One Epoch Is All You Need", 2019, arXiv 1906.06669)."""

import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core import Batch, all_gather_rows, require_keys
from leyden.data import DataModule

__all__ = ["OneEpochPlan", "SinglePass", "one_epoch_plan"]


class OneEpochPlan(NamedTuple):
    """Sizes of a model and of the data for one pass, as floats."""

    parameters: float
    tokens: float


def one_epoch_plan(parameters: float, tokens: float, *, ratio: float = 5.0) -> OneEpochPlan:
    """Shares the same computation, ``parameters * tokens``, out as so many tokens per parameter.

    Args:
        parameters: of the present model.
        tokens: that it sees, repeated ones counted each time.
        ratio: tokens per parameter: about 5 did best in the paper's settings, 20 in later work on larger models.

    Raises:
        ValueError: a number is not positive.
    """
    for name, value in (("parameters", parameters), ("tokens", tokens), ("ratio", ratio)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    compute = parameters * tokens
    return OneEpochPlan(math.sqrt(compute / ratio), math.sqrt(compute * ratio))


class SinglePass(Callback):
    """Ends a fit before the first optimizer step that would see a sample for the second time.

    It asks the device for the numbers of the samples in each step. Each process must have as many samples of a batch:
    leave the data's ``drop_last`` on.

    Args:
        on_repeat: ``"error"``, or ``"stop"`` to end the fit as at its last step.

    Raises:
        ValueError: another ``on_repeat``.
    """

    def __init__(self, on_repeat: str = "error") -> None:
        if on_repeat not in ("error", "stop"):
            raise ValueError(f"on_repeat must be 'error' or 'stop', got {on_repeat!r}")
        self.on_repeat = on_repeat
        self.seen = torch.zeros(0, dtype=torch.bool)  # [S]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for the training set.

        Raises:
            MisconfigurationException: the data are no `leyden.data.DataModule`.
            ValueError: a resumed run had another number of samples.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"SinglePass counts the samples of a leyden.data.DataModule, got {type(data).__name__}"
            )
        if not len(self.seen):
            self.seen = torch.zeros(data.num_samples, dtype=torch.bool)
        elif len(self.seen) != data.num_samples:
            raise ValueError(
                f"SinglePass has counted {len(self.seen)} training samples, but there are {data.num_samples}"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Counts a batch.

        Raises:
            ValueError: the batch has no ``index``, or has a sample for the second time and ``on_repeat`` is
                ``"error"``.
            StopIteration: it has, and ``on_repeat`` is ``"stop"``, which ends the epoch for Lightning.
        """
        require_keys(batch, "index", user="SinglePass")
        index = all_gather_rows(batch["index"]).cpu()
        repeated = _repeated(index, self.seen)
        if repeated is None:
            self.seen[index] = True
            return
        if self.on_repeat == "error":
            raise ValueError(
                f"sample {repeated} comes for the second time, after {int(self.seen.sum())} of {len(self.seen)} "
                "training samples: train for one epoch on more data, or set SinglePass's on_repeat to 'stop'"
            )
        trainer.should_stop = True
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        """Which samples were seen."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.seen = state_dict["seen"].clone()


def _repeated(index: Tensor, seen: Tensor) -> int | None:
    again = index[seen[index]]
    if not len(again):
        values, counts = index.unique(return_counts=True)
        again = values[counts > 1]
    return int(again[0]) if len(again) else None
