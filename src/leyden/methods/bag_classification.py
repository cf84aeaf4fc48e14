"""Multiple instance learning: one class per bag of instances."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from leyden.core.batch import Batch, require_keys
from leyden.core.network import Outputs
from leyden.methods.classification import Classification
from leyden.models.attention_mil import AttentionMIL
from leyden.nn.global_recycle import GlobalRecycle

__all__ = ["BagClassification"]


class BagClassification(Classification):
    """Trains a network to classify bags, such as those of `leyden.data.BagDataset`.

    Batches have ``input`` ``[B, N, ...]`` and, if bags are of several sizes, ``mask`` bool ``[B, N]``, False where
    there is no instance. ``Outputs.extra["attention"]`` is ``[B, N]``. An exported network has no mask: it takes bags
    of one size at a time.

    Args:
        network: classifies bags by attention.
        instance_metrics: more metrics of validation and test by name, updated as those of retrieval are: the attention,
            ``instance_target`` (-1 where there is no instance) and the numbers of the bags, ``[B, N]`` each. Such as
            `torchmetrics.retrieval.RetrievalRPrecision` with ``ignore_index=-1``: which share of the k positive
            instances of a bag is among the k of largest attention.
        compile: see `Method`.
        **kwargs: see `Classification`.

    Raises:
        ValueError: two metrics have one name.
    """

    network: AttentionMIL
    _instance_metrics: dict[str, Metric] = {}

    def __init__(
        self,
        network: AttentionMIL,
        *,
        instance_metrics: dict[str, Metric] | None = None,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        if taken := {"loss", "accuracy", *(kwargs.get("metrics") or {})} & set(instance_metrics or {}):
            raise ValueError(f"instance_metrics has {sorted(taken)}, which are logged anyway: choose other names")
        self._instance_metrics = instance_metrics or {}  # `Method` calls make_metrics
        super().__init__(network, **kwargs)
        self._run_bags = torch.compile(_bag_outputs) if compile else _bag_outputs

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network on ``batch["input"]``."""
        features, logits, attention = self._run_bags(self.network, batch["input"], batch.get("mask"))
        return Outputs(logits=logits, features=features, extra={"attention": attention})

    def make_metrics(self) -> dict[str, Metric]:
        """Those of `Classification`, and those of instances."""
        return {**super().make_metrics(), **deepcopy(self._instance_metrics)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        super().update_metrics(metrics, batch, outputs)
        for name in self._instance_metrics:
            require_keys(batch, "instance_target", user="instance_metrics")
            attention, target = outputs.extra["attention"], batch["instance_target"]
            metrics[name].update(attention, target, indexes=batch["index"].unsqueeze(1).expand_as(target))


def _bag_outputs(
    network: AttentionMIL,
    x: Tensor,
    mask: Tensor | None,
    recycle: GlobalRecycle | None = None,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    embeddings = network.embed(x)
    if recycle is not None:
        embeddings, mask = recycle(embeddings, mask, keys)
    features, attention = network.pool(embeddings, mask)
    return features, network.head(features), attention
