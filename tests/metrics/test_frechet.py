import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from leyden.metrics import FrechetDistance, frechet_distance
from leyden.models import MLP

REAL, GENERATED = torch.randn(40, 1, 2, 3), 1.5 * torch.randn(30, 1, 2, 3) + 0.3


def reference(real, generated):
    real, generated = (x.flatten(1).double() for x in (real, generated))
    root = torch.as_tensor(sqrtm((real.T.cov() @ generated.T.cov()).numpy()).real)
    moved = (real.mean(0) - generated.mean(0)).square().sum()
    return (moved + (real.T.cov() + generated.T.cov() - 2.0 * root).trace()).item()


def test_is_that_of_scipy_in_batches_of_any_size():
    metric = FrechetDistance()
    for real, generated in ((REAL[:7], GENERATED[:11]), (REAL[7:], GENERATED[11:])):
        metric.update(real, generated)
    assert metric.compute().item() == pytest.approx(reference(REAL, GENERATED), rel=1e-5)
    metric.reset()
    metric.update(REAL, REAL)
    assert metric.compute().item() == pytest.approx(0.0, abs=1e-5)


def test_of_normal_distributions_by_hand():
    one, two = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([9.0, 1.0]))
    value = frechet_distance(torch.tensor([1.0, 0.0]), one, torch.tensor([0.0, 2.0]), two)
    assert value.item() == pytest.approx(5.0 + 1.0)  # (2 - 3)^2


def test_compares_the_features_of_a_network_that_is_no_part_of_it():
    network = MLP(6, 4, (5,))
    metric = FrechetDistance(network)
    metric.update(REAL, GENERATED)
    with torch.no_grad():
        expected = reference(network.features(REAL), network.features(GENERATED))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert not network.training
    holder = nn.ModuleDict({"metric": metric}).double()
    metric.update(REAL.double(), GENERATED.double())
    assert not list(holder.parameters())


def two_processes(rows):
    from leyden.core import rank

    metric = FrechetDistance()
    start, stop = ((0, 25), (25, 40))[rank()]
    metric.update(rows[0][start:stop], rows[1][start : min(stop, 30)])
    return metric.compute().item()


def test_two_processes(run_processes):
    values = run_processes(two_processes, 2, (REAL, GENERATED))
    assert values == pytest.approx([reference(REAL, GENERATED)] * 2, rel=1e-5)


def test_one_sample_is_refused():
    metric = FrechetDistance()
    metric.update(REAL[:2], GENERATED[:1])
    with pytest.raises(ValueError, match="2 or more generated samples, got 1"):
        metric.compute()
