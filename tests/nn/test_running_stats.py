import pytest
import torch
from torch import nn

from leyden.nn import frozen_running_stats


def test_same_outputs_and_statistics_that_stay():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    x = torch.randn(8, 3)
    with frozen_running_stats(network):
        within = network(x)
        assert network[1].num_batches_tracked == 0
        assert network[1].running_mean.eq(0).all()
    assert torch.equal(network(x), within)  # in training, by the statistics of the batch
    assert network[1].num_batches_tracked == 1
    assert not network[1].running_mean.eq(0).all()
    assert not network[2].track_running_stats
    outside = network.eval()(x)
    with frozen_running_stats(network):
        assert torch.equal(network(x), outside)
    with pytest.raises(RuntimeError, match="stop"), frozen_running_stats(network):
        raise RuntimeError("stop")
    assert network[1].track_running_stats
