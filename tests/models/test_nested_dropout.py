import torch

from leyden.models import MLP, NestedDropoutNetwork
from leyden.nn import truncate_features


def test_the_head_sees_the_first_features():
    torch.manual_seed(0)
    inner = MLP(6, 3, (8,))
    network = NestedDropoutNetwork(inner, sigma=4.0)
    x = torch.randn(5, 6)
    features = inner.features(x)
    torch.testing.assert_close(network.eval()(x), inner(x))
    network.train()
    found = [network(x) for _ in range(20)]
    expected = [inner.head(truncate_features(features, keep)) for keep in range(1, 9)]
    numbers = [next(k for k, logits in enumerate(expected, 1) if torch.allclose(logits, one)) for one in found]
    assert len(set(numbers)) > 2


def test_the_given_network_is_left_as_it_was():
    inner = MLP(6, 3, (8,))
    head = inner.head
    network = NestedDropoutNetwork(inner, sigma=4.0)
    assert inner.head is head
    assert {name.split(".")[0] for name in network.state_dict()} == {"body", "head", "dropout"}
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in inner.parameters())
