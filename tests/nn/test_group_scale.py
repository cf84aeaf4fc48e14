import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import GroupScale, finalize_nm, nm_mask


def scaled(layer, groups=2):
    parametrize.register_parametrization(layer, "weight", GroupScale(*layer.weight.shape[:2], groups))
    return layer


def test_by_hand():
    scale = GroupScale(2, 4, groups=2)
    weight = torch.arange(1.0, 9.0).view(2, 4)
    assert torch.equal(scale(weight), weight)  # ones at first
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([[1.0, 2.0], [3.0, 10.0]]))
    assert scale(weight).tolist() == [[1.0, 2.0, 6.0, 8.0], [15.0, 18.0, 70.0, 80.0]]


def test_convolution():
    layer = scaled(nn.Conv2d(4, 3, 2))
    with torch.no_grad():
        layer.parametrizations.weight[0].scale[1, 1] = 5.0
    original = layer.parametrizations.weight.original
    torch.testing.assert_close(layer.weight[1, 2:], 5.0 * original[1, 2:])
    assert torch.equal(layer.weight[0], original[0])
    layer.weight.sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight[0].scale.grad[0, 0], original[0, :2].sum())


def test_finalize_prunes_and_folds():
    torch.manual_seed(0)
    network = nn.Sequential(scaled(nn.Linear(8, 6)), nn.ReLU(), scaled(nn.Linear(6, 4), groups=3), nn.Linear(4, 2))
    for place in (0, 2):
        nn.init.uniform_(network[place].parametrizations.weight[0].scale, 0.5, 2.0)
    masks = [nm_mask(network[place].parametrizations.weight.original, 1, 2) for place in (0, 2)]
    expected = [network[place].weight.detach() * mask for place, mask in zip((0, 2), masks, strict=True)]
    with torch.no_grad():
        for place, mask in zip((0, 2), masks, strict=True):
            network[place].parametrizations.weight.original.mul_(mask)
    x = torch.randn(3, 8)
    output = network(x)
    assert finalize_nm(network, 1, 2) == ["0", "2"]
    assert torch.equal(network(x), output)
    for place, weight in zip((0, 2), expected, strict=True):
        assert type(network[place]) is nn.Linear
        torch.testing.assert_close(network[place].weight.detach(), weight)
        assert (network[place].weight.unflatten(1, (-1, 2)) != 0).sum(-1).unique().tolist() == [1]
    with pytest.raises(ValueError, match="Sequential has no layer with a GroupScale"):
        finalize_nm(network)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="in_features must be a multiple of groups, got 9 and 2"):
        GroupScale(3, 9)
    with pytest.raises(ValueError, match="multiple of m=4 inputs"):
        finalize_nm(nn.Sequential(scaled(nn.Linear(6, 2))))
