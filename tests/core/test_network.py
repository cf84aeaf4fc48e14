import pytest
import torch
from torch import nn

from leyden.core import Network, Outputs


class Doubling(Network):
    def __init__(self):
        super().__init__()
        self.feature_dim = 2
        self.head = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.head.weight, 3.0)

    def features(self, x):
        return 2.0 * x


def test_forward_is_head_of_features():
    x = torch.tensor([[1.0, 10.0], [0.0, -1.0]])
    assert Doubling()(x).tolist() == [[66.0], [-6.0]]  # 3 * (2 a + 2 b)


def test_a_replaced_head_is_used():
    network = Doubling()
    network.head = nn.Identity()
    assert network(torch.tensor([[1.0, 2.0]])).tolist() == [[2.0, 4.0]]


def test_features_must_be_written():
    class Unfinished(Network):
        pass

    with pytest.raises(TypeError, match="features"):
        Unfinished()


def test_outputs_do_not_share_their_dicts():
    first, second = Outputs(torch.zeros(1)), Outputs(torch.zeros(1))
    first.taps["a"] = first.logits
    first.extra["b"] = 1
    assert second.taps == {}
    assert second.extra == {}
    assert second.features is None
