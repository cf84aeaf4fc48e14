import torch

from leyden.models import MLP, LinearProbe


def test_the_head_learns_and_the_features_do_not():
    torch.manual_seed(0)
    network = MLP(6, 3, (8,))
    probe = LinearProbe(network)
    x = torch.randn(4, 6)
    assert torch.equal(probe(x), network(x))
    assert torch.equal(probe.features(x), network.features(x))
    probe(x).square().sum().backward()
    assert all(p.grad is None for p in probe.body.parameters())
    assert all(p.grad.any() for p in probe.head.parameters())
    probe.features(x).square().sum().backward()
    assert all(p.grad.any() for p in probe.body.parameters())
    assert all(p.grad is None for p in network.parameters())  # of which it is a copy
