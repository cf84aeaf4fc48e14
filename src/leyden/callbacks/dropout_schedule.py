"""Dropout from the middle of a training on, where repeated data begin to be learned by heart (F. Xue, Y. Fu, W. Zhou,
Z. Zheng, Y. You, "To Repeat or Not To Repeat: Insights from Scaling LLM under Token-Crisis", 2023, arXiv 2305.13230).

From where on the paper has dropout could not be read (unverified): half of the steps here.
"""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchmetrics import MetricCollection

from leyden.core import Method

__all__ = ["DropoutSchedule", "EpochGap", "dropout_at", "set_dropout"]


def dropout_at(progress: float, *, p: float = 0.1, begin: float = 0.5, finish: float = 0.5) -> float:
    """Returns the rate of dropout: 0 before ``begin``, then linear to ``p`` at ``finish``, which may be the same.

    Args:
        progress: share of the optimizer steps that are made, in [0, 1].
        p: the final rate, in [0, 1).
        begin: where dropout begins, in [0, 1].
        finish: where it is ``p``, from ``begin`` to 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must lie in [0, 1), got {p}")
    if not 0.0 <= begin <= finish <= 1.0:
        raise ValueError(f"begin and finish must lie in [0, 1], in this order, got {begin} and {finish}")
    if progress < begin:
        return 0.0
    return p if progress >= finish else p * (progress - begin) / (finish - begin)


def set_dropout(module: nn.Module, p: float) -> int:
    """Sets the rate of all dropout layers, and of attention and recurrent layers that have ``dropout`` as a number.

    Stochastic depth is left as it is.

    Args:
        module: the network.
        p: the rate, in [0, 1).

    Returns:
        The number of layers.

    Raises:
        ValueError: ``p`` is out of range, or there is no such layer: a rate that is a constant within ``forward``
            cannot be set.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must lie in [0, 1), got {p}")
    count = 0
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = p
        elif isinstance(getattr(layer, "dropout", None), float):
            layer.dropout = p  # type: ignore[assignment]
        else:
            continue
        count += 1
    if not count:
        raise ValueError(f"{type(module).__name__} has no dropout layer whose rate could be set")
    return count


class DropoutSchedule(Callback):
    """Sets the network's dropout by the number of optimizer steps, whatever rate it was made with.

    Under ``torch.compile`` each new rate compiles again: let ``finish`` be ``begin``.

    Args:
        p: the final rate.
        begin: share of the steps without dropout.
        finish: share of the steps at which the rate is ``p``; ``begin`` if None.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, p: float = 0.1, begin: float = 0.5, finish: float | None = None) -> None:
        self.finish = begin if finish is None else finish
        dropout_at(0.0, p=p, begin=begin, finish=self.finish)
        self.p = p
        self.begin = begin
        self._now: float | None = None
        self._total_steps = 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for the layers.

        Raises:
            MisconfigurationException: the module is no `Method`.
            ValueError: there is none.
        """
        if not isinstance(pl_module, Method):
            raise MisconfigurationException(
                f"DropoutSchedule needs a leyden.core.Method, got {type(pl_module).__name__}"
            )
        set_dropout(pl_module.network, 0.0)
        self._now = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the number of steps.

        Raises:
            MisconfigurationException: the fit has no last step.
        """
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise MisconfigurationException("DropoutSchedule needs a last step: set trainer.max_epochs or max_steps")
        self._total_steps = int(steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets the rate."""
        rate = dropout_at(trainer.global_step / self._total_steps, p=self.p, begin=self.begin, finish=self.finish)
        if rate != self._now:
            assert isinstance(pl_module, Method)
            set_dropout(pl_module.network, rate)
            self._now = rate


class EpochGap(Callback):
    """Logs ``val/degradation``: how far the validation loss is above its best value so far."""

    def __init__(self) -> None:
        self.best = float("inf")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the loss with the best one.

        Raises:
            MisconfigurationException: the module is no `Method`.
        """
        if not isinstance(pl_module, Method):
            raise MisconfigurationException(f"EpochGap needs a leyden.core.Method, got {type(pl_module).__name__}")
        if trainer.sanity_checking:
            return
        loss = float(cast(MetricCollection, pl_module.metrics["val"])["loss"].compute())
        self.best = min(self.best, loss)
        pl_module.log("val/degradation", loss - self.best, sync_dist=True, reduce_fx="max")

    def state_dict(self) -> dict[str, Any]:
        """The best loss."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.best = state_dict["best"]
