import jsonargparse
import pytest
import torch
from torch import nn

from leyden.models import MLP


def test_value_by_hand():
    network = MLP(2, 1, (2,)).double()
    network.body[0].weight.data = torch.tensor([[1.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    network.body[0].bias.data = torch.tensor([0.5, -3.0], dtype=torch.float64)
    network.head.weight.data = torch.tensor([[2.0, 7.0]], dtype=torch.float64)
    network.head.bias.data = torch.tensor([-1.0], dtype=torch.float64)
    x = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)  # [1, 2, 1], to be flattened
    assert network.features(x).tolist() == [[5.5, 0.0]]  # 1 + 4 + 0.5, and relu(-1 + 2 - 3)
    assert network(x).tolist() == [[10.0]]


def test_layers():
    network = MLP(3, 2, (5, 4), activation=nn.Tanh, dropout=0.25)
    assert [type(layer) for layer in network.body] == [nn.Linear, nn.Tanh, nn.Dropout] * 2
    assert sum(parameter.numel() for parameter in network.parameters()) == (3 * 5 + 5) + (5 * 4 + 4) + (4 * 2 + 2)
    assert [layer.p for layer in network.body if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


def test_from_yaml():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MLP, "network")
    init_args = {"in_features": 3, "num_outputs": 2, "hidden": [4], "activation": "torch.nn.Tanh"}
    config = parser.parse_object({"network": {"class_path": "leyden.models.MLP", "init_args": init_args}})
    network = parser.instantiate(config).network
    assert isinstance(network.body[1], nn.Tanh)
    assert network.feature_dim == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features must be 1 or more, got 0"),
        ({"num_outputs": -1}, "num_outputs must be 1 or more, got -1"),
        ({"hidden": (4, 0)}, r"hidden must hold sizes of 1 or more, got \(4, 0\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**({"in_features": 3, "num_outputs": 2} | arguments))
