"""Lightning's W&B logger, whose summary of a run has the best and the last value of each validation metric."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from leyden.metrics.direction import default_mode

__all__ = ["WandbLogger"]


class WandbLogger(LightningWandbLogger):
    """Logs over ``trainer/global_step``; in the summary a ``val/`` metric has ``max`` or ``min`` beside ``last``.

    Whether more or less is better is told by the metric's name. A server that cannot be reached does not cost the run:
    it is logged offline. All arguments are Lightning's or those of `wandb.init`.
    """

    _defined: frozenset[str] = frozenset()
    # a member by another name, not `super()`: jsonargparse reads in it which arguments `wandb.init` takes
    _run = LightningWandbLogger.experiment

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run in W&B, begun when it is first asked for."""
        import wandb

        try:
            return self._run
        except wandb.errors.CommError as error:
            rank_zero_warn(f"W&B does not answer: the run is logged offline, {self._advice(error)}")
            wandb.teardown()  # its process still has the run that could not begin
            self._wandb_init["mode"] = "offline"
            return self._run

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Uploads checkpoints at the end of a fit; what cannot be uploaded stays where it is."""
        from wandb.errors import CommError

        try:
            super().finalize(status)
        except CommError as error:
            rank_zero_warn(f"W&B does not answer: the checkpoint is not uploaded, {self._advice(error)}")

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

    def _advice(self, error: Exception) -> str:
        return f"'wandb sync {self.save_dir}/wandb/*run-*' uploads what was logged ({' '.join(str(error).split())})"
