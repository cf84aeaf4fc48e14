import math

import pytest
import torch

from leyden.metrics import ClusteringAccuracy, NormalizedMutualInformation, SpectralClusteringAccuracy

PREDS, TARGET = torch.tensor([2, 2, 0, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 0, 2])


def measure(metric, preds, target):
    for part in (slice(0, 4), slice(4, None)):
        metric.update(preds[part], target[part])
    return metric.compute().item()


def test_accuracy_by_hand():
    assert measure(ClusteringAccuracy(), PREDS, TARGET) == pytest.approx(5 / 6)  # 2 is class 0, 0 is 1, 1 is 2
    assert measure(ClusteringAccuracy(), torch.arange(6), TARGET) == pytest.approx(3 / 6)  # three have no class
    assert measure(ClusteringAccuracy(), torch.zeros(6).long(), TARGET) == pytest.approx(3 / 6)


def test_the_pairs_are_the_best_of_all_and_not_greedy():
    # clusters by rows, classes by columns: 3 2 / 3 0. Greedy takes 3 + 0, the best is 2 + 3
    preds, target = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])
    assert measure(ClusteringAccuracy(), preds, target) == pytest.approx(5 / 8)


def test_mutual_information_by_hand():
    preds, target = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
    shared = 0.5 * math.log(0.5 / (0.5 * 0.75)) + 0.25 * math.log(0.25 / 0.375) + 0.25 * math.log(0.25 / 0.125)
    entropies = math.log(2.0), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert measure(NormalizedMutualInformation(), preds, target) == pytest.approx(2.0 * shared / sum(entropies))
    assert measure(NormalizedMutualInformation(), 1 - target, target) == pytest.approx(1.0)
    assert measure(NormalizedMutualInformation(), torch.zeros(4).long(), target) == pytest.approx(0.0)


def test_spectral_clusters_of_orthogonal_groups():
    metric = SpectralClusteringAccuracy(3)
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(30) % 3
    features = torch.eye(3)[target] + 0.1 * torch.randn(30, 3, generator=generator)
    features = torch.nn.functional.normalize(features, dim=1)
    for rows in (slice(0, 11), slice(11, 30)):
        metric.update(features[rows], (target[rows] + 1) % 3)
    assert metric.compute().item() == 1.0
    with pytest.raises(ValueError, match="num_clusters must be at least 2, got 1"):
        SpectralClusteringAccuracy(1)
