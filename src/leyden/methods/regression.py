"""Regression: real numbers per sample."""

from copy import deepcopy
from typing import Any

from torch import nn
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection, R2Score

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs

__all__ = ["Regression"]


class Regression(Method):
    """Trains a network to predict real numbers; logs loss, mean absolute error and the coefficient of determination.

    Args:
        network: gives predictions ``[N, D]``, the shape of the target.
        loss: module called with prediction and target; mean squared error if None.
        metrics: more metrics of validation and test by name, updated with prediction and target ``[N * D]``, such as
            `torchmetrics.image.PeakSignalNoiseRatio`.
        **kwargs: see `Method`.

    Raises:
        ValueError: one of the metrics is called ``loss``, ``mae`` or ``r2``.
    """

    _more_metrics: dict[str, Metric] = {}

    def __init__(
        self,
        network: Network,
        *,
        loss: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        if taken := {"loss", "mae", "r2"} & set(metrics or {}):
            raise ValueError(f"metrics has {sorted(taken)}, which are logged anyway: choose other names")
        self._more_metrics = metrics or {}  # `Method` calls make_metrics
        super().__init__(network, **kwargs)
        self.loss = loss or nn.MSELoss()

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task``.

        Raises:
            ValueError: prediction and target have different shapes.
        """
        require_keys(batch, "target", user="Regression")
        if outputs.logits.shape != batch["target"].shape:
            raise ValueError(
                f"the network's output has shape {tuple(outputs.logits.shape)}, the target "
                f"{tuple(batch['target'].shape)}: set the network's number of outputs to the target's last dimension"
            )
        return {"task": self.loss(outputs.logits, batch["target"])}

    def make_metrics(self) -> dict[str, Metric]:
        """Mean absolute error, R2 over all entries, and the metrics that were given."""
        return {"mae": MeanAbsoluteError(), "r2": R2Score(), **deepcopy(self._more_metrics)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        prediction, target = outputs.logits.float().flatten(), batch["target"].float().flatten()
        for name in ("mae", "r2", *self._more_metrics):
            metrics[name].update(prediction, target)
