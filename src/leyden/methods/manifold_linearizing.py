"""Unsupervised manifold linearizing and clustering (T. Ding, S. Tong, K. H. R. Chan, X. Dai, Y. Ma, B. D. Haeffele,
2023, arXiv 2301.01805)."""

from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.distributed import all_gather_rows_with_grad
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.core.random import sample_keys
from leyden.data.augment import Augment
from leyden.losses.coding_rate import coding_rate, doubly_stochastic_membership, mcr2_loss
from leyden.metrics.clustering import SpectralClusteringAccuracy

__all__ = ["ManifoldLinearizing"]


class ManifoldLinearizing(Method):
    """Learns features in which clusters are orthogonal subspaces, and the clusters, without labels.

    The outputs of the network, on the unit sphere, are the features. First they are spread as far as they go, while
    two views of a sample shall agree. Then a second head, which starts as the first, gives shares of each sample in
    the cluster of each other one (`leyden.losses.doubly_stochastic_membership`), and both heads minimise
    `leyden.losses.mcr2_loss`, over the samples of all processes. Spectral clustering of the shares gives the clusters
    that validation and test measure by the true classes; they have no loss, for a rate is one of a training batch.

    Args:
        network: gives features ``[N, D]``.
        num_clusters: of the spectral clustering.
        view: makes the second view of a sample.
        pretrain: share of the fit's epochs that spread the features, at least one epoch.
        agreement: weight of one minus the cosine of two views, in these epochs.
        eps: see `leyden.losses.coding_rate`.
        gamma: see `leyden.losses.doubly_stochastic_membership`.
        **kwargs: see `Method`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: Network,
        num_clusters: int,
        view: Augment,
        *,
        pretrain: float = 0.5,
        agreement: float = 20.0,
        eps: float = 0.5,
        gamma: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, got {num_clusters}")
        if not 0.0 < pretrain <= 1.0:
            raise ValueError(f"pretrain must lie in (0, 1], got {pretrain}: it is a share of the epochs")
        for name, value in (("eps", eps), ("gamma", gamma)):
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not agreement >= 0.0:
            raise ValueError(f"agreement must be at least 0, got {agreement}")
        self.num_clusters = num_clusters  # `Method` calls make_metrics
        self.gamma = gamma
        super().__init__(network, **kwargs)
        if not isinstance(network.head, nn.Linear):
            raise ValueError(f"network must have a linear head, got {type(network.head).__name__}")
        self.attach("membership", nn.Linear(network.feature_dim, network.head.out_features))
        self._copy_head()
        self.view = view
        self.pretrain = pretrain
        self.agreement = agreement
        self.eps = eps
        self._pretrain_epochs = 1

    def setup(self, stage: str) -> None:
        """Checks that the fit has a number of epochs.

        Raises:
            MisconfigurationException: it has not.
        """
        if stage != "fit":
            return
        epochs = self.trainer.max_epochs or 0
        if epochs < 1:
            raise MisconfigurationException("ManifoldLinearizing shares out the epochs: set trainer.max_epochs")
        self._pretrain_epochs = max(1, round(self.pretrain * epochs))

    def compute(self, batch: Batch) -> Outputs:
        """Features on the unit sphere as ``logits``, and those of the membership in ``extra``."""
        outputs = super().compute(batch)
        membership = functional.normalize(self.attached["membership"](outputs.features).float(), dim=-1)
        z = functional.normalize(outputs.logits.float(), dim=-1)
        return Outputs(logits=z, features=outputs.features, extra={"membership": membership})

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns ``task``, 0 in evaluation, and ``agreement`` while features are spread."""
        if not self.training:
            return {"task": 0.0 * outputs.logits.sum()}
        z, membership = (all_gather_rows_with_grad(x) for x in (outputs.logits, outputs.extra["membership"]))
        if self.current_epoch >= self._pretrain_epochs:
            shares = doubly_stochastic_membership(membership, gamma=self.gamma)
            return {"task": mcr2_loss(z, shares, eps=self.eps)}
        other = self._other_view(batch)
        spread = coding_rate(torch.cat([z, all_gather_rows_with_grad(other)]), eps=self.eps)
        distance = 1.0 - (outputs.logits * other).sum(-1).mean()
        return {"task": 0.0 * membership.sum() - spread, "agreement": self.agreement * distance}

    def _other_view(self, batch: Batch) -> Tensor:
        require_keys(batch, "index", user="ManifoldLinearizing")
        keys = sample_keys(getattr(self.datamodule, "seed", 0), self.global_step, batch["index"])
        return functional.normalize(super().compute(self.view(batch, keys)).logits.float(), dim=-1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lets the head of the membership follow that of the features until it is trained, before a callback saves."""
        super().optimizer_step(*args, **kwargs)
        if self.current_epoch < self._pretrain_epochs:
            self._copy_head()

    def _copy_head(self) -> None:
        self.attached["membership"].load_state_dict(self.network.head.state_dict())

    def make_metrics(self) -> dict[str, Metric]:
        """Agreement of clusters and classes."""
        return {"cluster_accuracy": SpectralClusteringAccuracy(self.num_clusters, gamma=self.gamma)}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        require_keys(batch, "target", user="the metrics of ManifoldLinearizing")
        metrics["cluster_accuracy"].update(outputs.extra["membership"], batch["target"])
