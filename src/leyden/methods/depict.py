"""DEPICT: clusters of images by an autoencoder with a softmax layer (K. G. Dizaji, A. Herandi, C. Deng, W. Cai,
H. Huang, "Deep Clustering via Joint Convolutional Autoencoder Embedding and Relative Entropy Minimization", 2017,
arXiv 1704.06327, algorithm 1; authors' code: herandy/DEPICT).

As in the authors' code, hidden layers have a tenth of the input's weight in the reconstruction, and gradients flow
into the clean layers that are reconstructed. Other than there, the softmax layer starts as the exact rule of k-means
(weights ``c_k``, biases ``-|c_k|^2 / 2``; the authors normalise ``c_k`` and have no bias), one optimizer goes through
all phases, phases have given lengths, and the probabilities of a batch are those before its step, which costs no pass.
"""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.distributed import shard_like
from leyden.core.memory import SampleMemory
from leyden.core.method import Method
from leyden.core.network import Outputs
from leyden.data.module import DataModule
from leyden.losses.depict import depict_loss, depict_targets
from leyden.metrics.clustering import ClusteringAccuracy, NormalizedMutualInformation
from leyden.models.stacked_autoencoder import StackedAutoencoder

__all__ = ["DEPICT"]


class DEPICT(Method):
    """Clusters the training samples, whose labels it never reads; the head gives scores of the clusters.

    First only the denoising autoencoder is trained. Then k-means on the codes of all training samples starts the head
    and gives the first targets, cluster numbers. After the epochs in which these are learned, `depict_targets` makes
    new targets of the last predictions without noise, at every epoch's end. Noisy predictions follow the targets.

    Terms are ``task`` (the cross entropy of the clusters) and ``reconstruction``. Validation and test have no targets:
    their loss is that of reconstruction. They measure the clusters by the true classes, and need ``target`` for it.

    Args:
        network: the autoencoder, with as many outputs as there are clusters.
        reconstruction_weight: factor of ``reconstruction``.
        cluster_weight: factor of ``task``.
        hidden_weight: share of the input's weight that hidden layers have in the reconstruction.
        pretrain: share of the fit's epochs for the autoencoder alone, at least one epoch; 1 ends with k-means.
        initialize: share of the fit's epochs that learn the cluster numbers of k-means.
        power: see `leyden.losses.depict_targets`, like the next.
        frequency_power: see there.
        tol: mean squared change of the targets below which the fit stops.
        **kwargs: see `Method`.

    Raises:
        ValueError: an argument is out of range.
    """

    network: StackedAutoencoder

    def __init__(
        self,
        network: StackedAutoencoder,
        *,
        reconstruction_weight: float = 1.0,
        cluster_weight: float = 1.0,
        hidden_weight: float = 0.1,
        pretrain: float = 0.5,
        initialize: float = 0.1,
        power: float = 2.0,
        frequency_power: float = 1.0,
        tol: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        not_negative = {
            "reconstruction_weight": reconstruction_weight,
            "cluster_weight": cluster_weight,
            "hidden_weight": hidden_weight,
            "frequency_power": frequency_power,
            "tol": tol,
        }
        for name, value in not_negative.items():
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not (0.0 < pretrain <= 1.0 and 0.0 <= initialize < 1.0):
            raise ValueError(
                f"pretrain must lie in (0, 1] and initialize in [0, 1), got {pretrain} and {initialize}: they are "
                "shares of the epochs"
            )
        if not power > 0.0:
            raise ValueError(f"power must be positive, got {power}")
        self.reconstruction_weight = reconstruction_weight
        self.cluster_weight = cluster_weight
        self.hidden_weight = hidden_weight
        self.pretrain = pretrain
        self.initialize = initialize
        self.power = power
        self.frequency_power = frequency_power
        self.tol = tol
        self.prob: SampleMemory | None = None  # latest predictions without noise, [S, K]; from k-means on
        self.targets: SampleMemory | None = None  # [S, K]; from k-means on
        self._least_change = float("inf")  # of the targets, mean squared, in this fit

    def setup(self, stage: str) -> None:
        """Checks that network, data and trainer fit.

        Raises:
            MisconfigurationException: the network is another one, the data are not a DataModule with at least a sample
                per cluster, or the fit has no number of epochs.
        """
        if not isinstance(self.network, StackedAutoencoder):
            raise MisconfigurationException(
                f"DEPICT needs a leyden.models.StackedAutoencoder as network, got {type(self.network).__name__}"
            )
        if stage != "fit":
            return
        self._least_change = float("inf")
        if not isinstance(self.datamodule, DataModule):
            raise MisconfigurationException(
                f"DEPICT clusters a training set and needs a leyden.data.DataModule, got "
                f"{type(self.datamodule).__name__}"
            )
        if (self.trainer.max_epochs or 0) < 1:
            raise MisconfigurationException("DEPICT shares out the epochs of the fit: set trainer.max_epochs")
        num_samples, num_clusters = self.datamodule.num_samples, self.network.head.out_features
        if num_samples < num_clusters:
            raise MisconfigurationException(
                f"{num_samples} training samples cannot make {num_clusters} clusters: give the network fewer outputs"
            )

    def compute(self, batch: Batch) -> Outputs:
        """Noisy scores in training; ``extra`` has the clean ones and the reconstruction's loss."""
        clean = self.network.encode(batch["input"])
        code = self.network.encode(batch["input"], noise=True)[-1] if self.training else clean[-1]
        errors = [
            functional.mse_loss(made.float(), true.float())
            for made, true in zip(self.network.decode(code), clean[:-1], strict=True)
        ]
        reconstruction = errors[0] + self.hidden_weight * sum(errors[1:])
        extra = {"clean_code": clean[-1], "reconstruction": reconstruction}
        return Outputs(logits=self.network.head(code), features=code, extra=extra)

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns ``task``, 0 before there are clusters and in evaluation, and ``reconstruction``."""
        task = 0.0 * outputs.logits.sum()
        if self.training and self.targets is not None:
            task = self._cluster_loss(batch, outputs)
        return {"task": task, "reconstruction": self.reconstruction_weight * outputs.extra["reconstruction"]}

    def _cluster_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        require_keys(batch, "index", user="DEPICT")
        if "mix_lam" in batch:
            raise MisconfigurationException(
                "DEPICT keeps a target per training sample, which a mixture of two does not have: take out the "
                "callback that mixes inputs"
            )
        assert self.prob is not None
        assert self.targets is not None
        with torch.no_grad():
            prob = self.network.head(outputs.extra["clean_code"]).float().softmax(-1)
        self.prob.write(batch["index"], prob)
        return self.cluster_weight * depict_loss(outputs.logits, self.targets.read(batch["index"])[0])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the step, and behind an epoch's last one clusters or new targets, before a callback saves them."""
        super().optimizer_step(*args, **kwargs)
        if not self.trainer.is_last_batch:
            return
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 1
        if self.targets is None and epoch >= self._pretrain_epochs:
            self._start_clusters()
        elif epoch > self._pretrain_epochs and epoch >= self._pretrain_epochs + round(self.initialize * epochs):
            self._renew_targets()

    def on_train_start(self) -> None:
        """Ends a resumed fit whose targets had come to rest."""
        super().on_train_start()
        self._stop_at_rest()

    def on_train_epoch_end(self) -> None:
        """Logs the means, and ends the fit when the targets have come to rest."""
        super().on_train_epoch_end()
        self._stop_at_rest()

    def _stop_at_rest(self) -> None:
        if self._least_change < self.tol:
            self.trainer.should_stop = True

    @property
    def _pretrain_epochs(self) -> int:
        return max(1, round(self.pretrain * (self.trainer.max_epochs or 1)))

    @torch.no_grad()
    def _start_clusters(self) -> None:
        data = cast(DataModule, self.datamodule)
        loader = data.all_batches("train")
        codes = self.with_whole_parameters(
            lambda: torch.cat([self.network.features(batch["input"].to(self.network.head.weight)) for batch in loader])
        )
        num_clusters = self.network.head.out_features
        k_means = KMeans(num_clusters, n_init=10, random_state=data.seed).fit(codes.double().cpu().numpy())
        number = torch.from_numpy(k_means.labels_).long().to(self.device)
        number = self.trainer.strategy.broadcast(number)  # other processors may round in another way
        member = functional.one_hot(number, num_clusters).to(codes.dtype)  # [S, K]
        centroids = member.T @ codes / member.sum(0).clamp(min=1.0).unsqueeze(-1)  # [K, D]
        head = self.network.head
        head.weight.copy_(shard_like(centroids, head.weight))
        head.bias.copy_(shard_like(-0.5 * centroids.square().sum(-1), head.bias))
        self.prob, self.targets = SampleMemory(len(codes), num_clusters), SampleMemory(len(codes), num_clusters)
        for memory in (self.prob, self.targets):
            memory.values = member.to(memory.values.dtype, copy=True)

    def _renew_targets(self) -> None:
        assert self.prob is not None
        assert self.targets is not None
        targets = depict_targets(self.prob.values, power=self.power, frequency_power=self.frequency_power)
        self._least_change = min(self._least_change, (targets - self.targets.values).square().mean().item())
        self.targets.values = targets

    def make_metrics(self) -> dict[str, Metric]:
        """Agreement of clusters and classes."""
        return {"cluster_accuracy": ClusteringAccuracy(), "nmi": NormalizedMutualInformation()}

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Adds a batch."""
        require_keys(batch, "target", user="the metrics of DEPICT")
        target = batch["target"] if batch["target"].ndim == 1 else batch["target"].argmax(-1)
        for name in ("cluster_accuracy", "nmi"):
            metrics[name].update(outputs.logits.argmax(-1), target)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the memories."""
        super().on_save_checkpoint(checkpoint)
        if self.prob is not None and self.targets is not None:
            checkpoint["method"]["depict"] = {
                "prob": self.prob.state_dict(),
                "targets": self.targets.state_dict(),
                "least_change": self._least_change,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` added; needed in a fit alone."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("method", {}).get("depict")
        if state is not None and isinstance(self.datamodule, DataModule) and self.trainer.training:
            shape = self.datamodule.num_samples, self.network.head.out_features
            self.prob, self.targets = SampleMemory(*shape), SampleMemory(*shape)
            self.prob.load_state_dict(state["prob"])
            self.targets.load_state_dict(state["targets"])
            self._least_change = state["least_change"]
