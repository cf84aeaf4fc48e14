"""Lightning's W&B logger, whose summary of a run has the best and the last value of each validation metric."""

from collections.abc import Mapping

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from leyden.metrics.direction import default_mode

__all__ = ["WandbLogger"]


class WandbLogger(LightningWandbLogger):
    """Logs over ``trainer/global_step``; in the summary a ``val/`` metric has ``max`` or ``min`` beside ``last``.

    Whether more or less is better is told by the metric's name. All arguments are Lightning's or those of `wandb.init`.
    """

    _defined: frozenset[str] = frozenset()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs; tells W&B about a metric before its first value."""
        for name in metrics.keys() - self._defined:
            if name.startswith("val/"):
                self.experiment.define_metric(
                    f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name,
                    step_metric="trainer/global_step",
                    step_sync=True,
                    summary=f"{default_mode(name)},last",
                )
        self._defined = self._defined.union(metrics)
        super().log_metrics(metrics, step)
