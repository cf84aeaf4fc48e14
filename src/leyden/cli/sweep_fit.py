"""A fit of a sweep: it tells the values of the metric while it trains, and can be stopped early."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from leyden.cli.commands import Arguments
from leyden.cli.config import ConfigError
from leyden.cli.lightning import LeydenCLI
from leyden.cli.sweep_worker import SweepRun

__all__ = ["DivergedError", "NotLoggedError", "StoppedEarlyError", "SweepFit"]


class StoppedEarlyError(Exception):
    """Other runs were better at this point."""


class DivergedError(Exception):
    """The metric is not finite."""


class NotLoggedError(ConfigError):
    """No run of the sweep will log the metric."""


class SweepFit(LeydenCLI):
    """Fits in a given folder, or goes on there.

    Args:
        run: what is to be made.
        should_stop: called with the number of the value, from 1 on, and the value whenever the metric is logged.

    Attributes:
        value: of the metric: the best one of the fit, as that of the checkpoint which is kept; or of the test.

    Raises:
        StoppedEarlyError: ``should_stop`` said so.
        DivergedError: the metric is not finite.
        NotLoggedError: the metric is not logged.
    """

    def __init__(self, run: SweepRun, should_stop: Callable[[int, float], bool]) -> None:
        self.watcher = _Watcher(run.metric, run.mode, should_stop)
        self.value = math.nan
        super().__init__("fit", run.tree, Arguments(resume=str(run.folder)), run.files)

    def before_fit(self) -> None:
        """Adds the callback that watches the metric."""
        self.trainer.callbacks.append(self.watcher)  # type: ignore[attr-defined]
        super().before_fit()

    def after_fit(self) -> None:
        """Tests, if that was asked for, and takes the value."""
        super().after_fit()
        if self.watcher.iteration == 0:
            self.watcher.observe(self.trainer)
        if self.watcher.best is None:
            raise _not_logged(self.watcher.metric, self.trainer)
        self.value = self.watcher.best


class _Watcher(Checkpoint):  # as one it is called when a module has logged what an epoch gave
    def __init__(self, metric: str, mode: str, should_stop: Callable[[int, float], bool]) -> None:
        self.metric = metric
        self.better = min if mode == "min" else max
        self.should_stop = should_stop
        self.iteration = 0
        self.best: float | None = None

    def observe(self, trainer: Trainer) -> None:
        if self.metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.metric])
        self.iteration += 1
        if not math.isfinite(value):
            raise DivergedError(f"{self.metric} is {value}")
        self.best = value if self.best is None else self.better(self.best, value)
        if self.should_stop(self.iteration, value):
            raise StoppedEarlyError(f"after {self.iteration} values of {self.metric}, the best of them {self.best:.6g}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and not self.metric.startswith("train/"):
            self.observe(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric.startswith("train/"):
            self.observe(trainer)
        # told after the first epoch and not after the last; what a test logs is not known before
        validated = any(name.startswith("val/") for name in trainer.callback_metrics)
        if self.iteration == 0 and validated and not self.metric.startswith("test/"):
            raise _not_logged(self.metric, trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iteration, self.best = state_dict["iteration"], state_dict["best"]


def _not_logged(metric: str, trainer: Trainer) -> NotLoggedError:
    logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
    return NotLoggedError(f"no {metric!r} was logged; these were: {logged}")
