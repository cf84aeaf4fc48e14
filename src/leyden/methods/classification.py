"""Classification: one class per sample."""

from copy import deepcopy
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs

__all__ = ["Classification"]


class Classification(Method):
    """Trains a network to classify; logs loss, accuracy and what other metrics are given.

    The target is int64 ``[N]`` or soft float ``[N, C]``, as callbacks that mix samples make it. Samples whose
    ``labeled`` is False have no loss.

    Args:
        network: gives logits ``[N, C]``.
        loss: module called with logits and target; cross entropy if None.
        metrics: more metrics of validation and test by name, updated with logits ``[N, C]`` and class numbers ``[N]``,
            such as `torchmetrics.classification.MulticlassAUROC`.
        **kwargs: see `Method`.

    Raises:
        ValueError: one of the metrics is called ``loss`` or ``accuracy``.
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
        if taken := {"loss", "accuracy"} & set(metrics or {}):
            raise ValueError(f"metrics has {sorted(taken)}, which are logged anyway: choose other names")
        self._more_metrics = metrics or {}  # `Method` calls make_metrics
        super().__init__(network, **kwargs)
        self.loss = loss or nn.CrossEntropyLoss()

    def setup(self, stage: str) -> None:
        """Checks that the data have classes, and that the network tells as many apart."""
        num_classes = getattr(self.datamodule, "num_classes", None)
        head = self.network.head
        if num_classes and isinstance(head, nn.Linear) and head.out_features < num_classes:
            raise MisconfigurationException(
                f"the network has {head.out_features} outputs, but the data have {num_classes} classes: "
                f"set its number of outputs to {num_classes}"
            )

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the loss as ``task``."""
        require_keys(batch, "target", user="Classification")
        logits, target = outputs.logits, batch["target"]
        if "labeled" in batch:
            logits, target = logits[batch["labeled"]], target[batch["labeled"]]
            if not len(target):
                return {"task": 0.0 * outputs.logits.sum()}
        return {"task": self.loss(logits, target)}

    def make_metrics(self) -> dict[str, Metric]:
        """Accuracy over all samples, and the metrics that were given."""
        return {"accuracy": MulticlassAccuracy(average="micro"), **deepcopy(self._more_metrics)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        target = batch["target"] if batch["target"].ndim == 1 else batch["target"].argmax(-1)
        metrics["accuracy"].update(outputs.logits.argmax(-1), target)
        for name in self._more_metrics:
            metrics[name].update(outputs.logits, target)
