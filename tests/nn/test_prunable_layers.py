import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.models import MLP, ConvNet, ViT
from leyden.nn import SRSTE, prunable_layers, stored_weight


def test_linear_layers_and_convolutions_outside_of_skip():
    assert list(prunable_layers(MLP(8, 3, (4, 4)))) == ["body.0", "body.3"]
    assert list(prunable_layers(MLP(8, 3, (4, 4)), skip=())) == ["body.0", "body.3", "head"]
    names = list(prunable_layers(ViT(8, 4, 3, dim=8, depth=1, num_heads=2), skip=("head", "blocks.0.attention")))
    assert names == ["patch_embedding", "blocks.0.fc1", "blocks.0.fc2"]


def test_layers_that_groups_do_not_fit_are_named(monkeypatch):
    lines = []
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_info", lines.append)
    assert list(prunable_layers(ConvNet(1, 10, width=4), m=4)) == ["body.2.0", "body.4.0"]
    assert lines == ["dense, because groups of 4 do not fit: body.0.0 (1 inputs)"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="MLP has no linear layer or convolution with a multiple of 16 inputs outside"):
        prunable_layers(MLP(8, 3, (4,)), m=16)
    with pytest.raises(ValueError, match=r"skip: there is no module 'haed' in MLP; near it: head"):
        prunable_layers(MLP(8, 3), skip=("haed",))
    with pytest.raises(ValueError, match="Identity has no linear layer"):
        prunable_layers(nn.Identity(), skip=())


def test_stored_weight():
    layer = nn.Linear(4, 2)
    weight = layer.weight
    assert stored_weight(layer) is weight
    parametrize.register_parametrization(layer, "weight", SRSTE())
    assert stored_weight(layer) is weight
    assert torch.equal(stored_weight(layer), weight)
