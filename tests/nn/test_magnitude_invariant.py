import math

import pytest
import torch
from torch import nn

from leyden.nn import HyperModule, HyperNetwork, magnitude_invariant_encode

SHAPES = {"layer.weight": (6, 4), "layer.bias": (6,), "norm.weight": (6,)}


def test_encoding_by_hand():
    half = math.sqrt(0.5)
    encoded = magnitude_invariant_encode(torch.tensor([[0.0, 1.0, 0.5], [1 / 3, 2 / 3, 1.0]]))
    expected = [[1.0, 0.0, half, 0.0, 1.0, half], [math.sqrt(0.75), 0.5, 0.0, 0.5, math.sqrt(0.75), 1.0]]
    torch.testing.assert_close(encoded, torch.tensor(expected), atol=1e-6, rtol=0.0)


def test_encoding_is_as_long_for_any_input():
    z = torch.rand(7, 2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(magnitude_invariant_encode(z).norm(dim=-1), torch.full((7, 2), math.sqrt(5)))


def test_numbers_of_the_formula():
    network = HyperNetwork(2, SHAPES, hidden=(5, 3)).double()
    z = torch.tensor([0.2, 0.9], dtype=torch.float64)
    x = torch.cat([torch.cos(math.pi * z / 2), torch.sin(math.pi * z / 2)])
    for layer in (network.body[0], network.body[2]):
        x = layer.weight @ x + layer.bias
        x = torch.where(x > 0, x, 0.01 * x)
    flat = network.last.weight @ x + network.last.bias
    predicted = network(z)
    assert list(predicted) == list(SHAPES)
    torch.testing.assert_close(predicted["layer.weight"], flat[:24].view(6, 4))
    torch.testing.assert_close(predicted["layer.bias"], flat[24:30])
    torch.testing.assert_close(predicted["norm.weight"], flat[30:])
    several = network(torch.stack([z, 1.0 - z]))
    torch.testing.assert_close(several["layer.weight"][0], predicted["layer.weight"])
    assert several["layer.weight"].shape == (2, 6, 4)


def test_without_last_weights_the_input_does_not_matter():
    network = HyperNetwork(1, SHAPES)
    nn.init.zeros_(network.last.weight)
    for z in (0.0, 0.3, 1.0):
        predicted = network(torch.tensor([z]))
        assert torch.equal(torch.cat([t.flatten() for t in predicted.values()]), network.last.bias)
    assert torch.equal(predicted["norm.weight"], torch.ones(6))
    assert torch.equal(predicted["layer.bias"], torch.zeros(6))
    assert predicted["layer.weight"].any()


def spread(encode, z, name="layer.weight", count=400):
    """Standard deviation of what is predicted by fresh networks, without what does not depend on z."""
    torch.manual_seed(0)
    values = []
    for _ in range(count):
        network = HyperNetwork(1, {"layer.weight": (6, 4), "layer.bias": (40,)}, encode=encode)
        nn.init.zeros_(network.last.bias)
        values.append(network(torch.tensor([z]))[name].flatten())
    return torch.cat(values).std().item()


def test_size_of_predictions_does_not_depend_on_the_input():
    first = spread(True, 0.05)
    for z in (0.3, 0.7, 1.0):
        assert spread(True, z) == pytest.approx(first, rel=0.1)
    # a usual hypernetwork is proportional to it: no hidden layer has a bias at first
    assert spread(False, 1.0) == pytest.approx(20.0 * spread(False, 0.05), rel=1e-4)


def test_start_of_the_weights():
    torch.manual_seed(0)
    network = HyperNetwork(8, {"a.weight": (200, 50), "b.weight": (10, 50)}, hidden=(300,))
    gain = math.sqrt(2.0 / (1.0 + 0.01**2))
    wide, narrow = network.last.weight[:10_000], network.last.weight[10_000:]  # fan-outs 10,000 and 500
    assert wide.std().item() == pytest.approx(gain / math.sqrt(10_000), rel=0.02)
    assert narrow.std().item() == pytest.approx(gain / math.sqrt(500), rel=0.02)
    assert network.body[0].weight.std().item() == pytest.approx(gain / math.sqrt(300), rel=0.05)
    independent = network.last.bias[:10_000]
    assert independent.std().item() == pytest.approx(gain / math.sqrt(50), rel=0.05)
    assert not network.body[0].bias.any()
    assert not HyperNetwork(8, SHAPES, encode=False).last.bias.any()


def test_module_runs_each_sample_with_weights_of_its_own():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = [p.clone() for p in target.parameters()]
    module = HyperModule(target, 2)
    assert all(map(torch.equal, target.parameters(), before))
    torch.testing.assert_close(module.hypernetwork.last.bias, torch.cat([p.flatten() for p in before]))
    x, z = torch.randn(5, 3), torch.rand(5, 2)
    y = module(x, z)
    for number in range(5):
        weights = module.hypernetwork(z[number])
        expected = weights["2.weight"] @ (weights["0.weight"] @ x[number] + weights["0.bias"]).relu()
        torch.testing.assert_close(y[number], expected + weights["2.bias"])
    y.sum().backward()
    assert {name for name, _ in module.named_parameters()} == {
        f"hypernetwork.{layer}.{kind}" for layer in ("body.0", "body.2", "last") for kind in ("weight", "bias")
    }
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="input_dim and hidden must be at least 1"):
        HyperNetwork(0, SHAPES)
    with pytest.raises(ValueError, match="output_shapes not empty"):
        HyperNetwork(1, {})
    with pytest.raises(ValueError, match="must have no batch norm"):
        HyperModule(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 1)
