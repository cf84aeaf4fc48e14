"""How well clusters agree with classes that they were not told."""

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import SpectralClustering
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from leyden.losses.coding_rate import doubly_stochastic_membership

__all__ = ["ClusteringAccuracy", "NormalizedMutualInformation", "SpectralClusteringAccuracy"]


class _ClusteringMetric(Metric):
    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds cluster numbers and class numbers, int64 ``[N]`` each."""
        self.preds.append(preds)
        self.target.append(target)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.target).cpu(), dim_zero_cat(self.preds).cpu()


class ClusteringAccuracy(_ClusteringMetric):
    """Share of the samples in the right cluster, where each class has one cluster: those that make the share largest.

    Clusters beyond the number of classes, or classes beyond that of clusters, have no partner: all wrong.
    """

    def compute(self) -> Tensor:
        """Returns the share, ``[]``."""
        return torch.tensor(_matched_share(*self._pairs()), dtype=torch.get_default_dtype(), device=self.device)


class NormalizedMutualInformation(_ClusteringMetric):
    """Mutual information of clusters and classes, over the mean of their two entropies."""

    def compute(self) -> Tensor:
        """Returns a number in [0, 1], ``[]``."""
        value = normalized_mutual_info_score(*self._pairs())
        return torch.tensor(value, dtype=torch.get_default_dtype(), device=self.device)


class SpectralClusteringAccuracy(_ClusteringMetric):
    """As `ClusteringAccuracy`, of the clusters into which `sklearn.cluster.SpectralClustering` divides all samples.

    Their affinities are those of `leyden.losses.doubly_stochastic_membership`. ``update`` takes features on the unit
    sphere ``[N, M]`` in the place of cluster numbers.

    Args:
        num_clusters: number of clusters.
        gamma: as in `leyden.losses.doubly_stochastic_membership`.

    Raises:
        ValueError: ``num_clusters`` is below 2.
    """

    def __init__(self, num_clusters: int, *, gamma: float = 0.1) -> None:
        super().__init__()
        if num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, got {num_clusters}")
        self.num_clusters = num_clusters
        self.gamma = gamma

    def compute(self) -> Tensor:
        """Returns the share, ``[]``; at most as many clusters as samples are made."""
        target, features = self._pairs()
        affinity = doubly_stochastic_membership(features.double(), gamma=self.gamma).numpy()
        clustering = SpectralClustering(
            min(self.num_clusters, len(target) - 1), affinity="precomputed", random_state=0, assign_labels="kmeans"
        )
        share = _matched_share(target, torch.from_numpy(clustering.fit_predict(affinity)))
        return torch.tensor(share, dtype=torch.get_default_dtype(), device=self.device)


def _matched_share(target: Tensor, clusters: Tensor) -> float:
    counts = contingency_matrix(target, clusters)
    return counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum()
