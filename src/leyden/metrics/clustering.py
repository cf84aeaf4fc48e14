"""How well clusters agree with classes that they were not told."""

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["ClusteringAccuracy", "NormalizedMutualInformation"]


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
        counts = contingency_matrix(*self._pairs())
        matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
        return torch.tensor(matched / counts.sum(), dtype=torch.get_default_dtype(), device=self.device)


class NormalizedMutualInformation(_ClusteringMetric):
    """Mutual information of clusters and classes, over the mean of their two entropies."""

    def compute(self) -> Tensor:
        """Returns a number in [0, 1], ``[]``."""
        value = normalized_mutual_info_score(*self._pairs())
        return torch.tensor(value, dtype=torch.get_default_dtype(), device=self.device)
