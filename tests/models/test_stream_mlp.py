import pytest
import torch
from torch import nn
from torch.nn import functional

from leyden.models import StreamMLP


def test_layers_by_hand():
    network = StreamMLP(20, 2, (8,), sparsity=0.5)
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    hidden = x @ network.body[0].weight.T
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(network.features(x), functional.leaky_relu(hidden, 0.01))
    torch.testing.assert_close(network(x), network.features(x) @ network.head.weight.T)


def test_initial_weights_are_sparse_and_biases_zero():
    network = StreamMLP(20, 3, (10, 30))
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert [(layer.weight == 0.0).sum(1).unique().tolist() for layer in layers] == [[18], [9], [27]]
    assert not any(layer.bias.any() for layer in layers)
    assert not any(isinstance(m, nn.LayerNorm) and list(m.parameters()) for m in network.modules())


def test_bad_arguments():
    with pytest.raises(ValueError, match="hidden must hold sizes of 1 or more"):
        StreamMLP(4, hidden=(0,))
    with pytest.raises(ValueError, match="sparsity must lie in"):
        StreamMLP(4, sparsity=2.0)
