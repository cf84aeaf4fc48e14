"""Regression: real numbers per sample."""

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
        **kwargs: see `Method`.
    """

    def __init__(self, network: Network, *, loss: nn.Module | None = None, **kwargs: Any) -> None:
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
        """Mean absolute error, and R2 over all entries."""
        return {"mae": MeanAbsoluteError(), "r2": R2Score()}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        prediction, target = outputs.logits.float().flatten(), batch["target"].float().flatten()
        metrics["mae"].update(prediction, target)
        metrics["r2"].update(prediction, target)
