import pytest
import torch
from torch import nn

from leyden.core import replace_modules


def is_linear(name, module):
    return type(module) is nn.Linear


class Noisy(nn.Linear):
    pass


def noisy(old):
    return Noisy(old.in_features, old.out_features)


def test_weights_dtype_and_mode_are_kept():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    before, names = network(x), list(network.state_dict())
    assert replace_modules(network, is_linear, noisy) == ["0", "1.1"]
    assert type(network[0]) is type(network[1][1]) is Noisy
    assert list(network.state_dict()) == names
    assert torch.equal(network(x), before)
    assert network[0].weight.dtype == torch.float64
    assert not network[0].training


def test_what_has_another_shape_is_left_as_it_was_built():
    network = nn.Sequential(nn.Linear(3, 4))
    bias = network[0].bias.detach().clone()

    def build(old):
        new = nn.Linear(7, 4)
        nn.init.constant_(new.weight, 5.0)
        return new

    replace_modules(network, is_linear, build)
    assert network[0].weight.eq(5.0).all()
    assert torch.equal(network[0].bias, bias)


def test_a_module_in_two_places_gets_one_replacement():
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    assert replace_modules(network, is_linear, noisy) == ["0", "2"]
    assert network[0] is network[2]
    assert isinstance(network[0], Noisy)


def test_it_does_not_look_inside_of_what_it_replaced():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    seen = []

    def predicate(name, module):
        seen.append(name)
        return isinstance(module, nn.Sequential) and name == "0"

    replace_modules(network, predicate, lambda old: nn.Sequential(old, nn.ReLU()))
    assert seen == ["", "0"]


def test_a_wrapper_keeps_the_old_module():
    network = nn.Sequential(nn.Linear(2, 2))
    old = network[0]
    replace_modules(network, is_linear, lambda layer: nn.Sequential(layer, nn.ReLU()))
    assert network[0][0] is old


def test_module_may_be_changed_in_place():
    network = nn.Sequential(nn.Linear(2, 2))
    old = network[0]
    assert replace_modules(network, is_linear, lambda layer: layer.requires_grad_(False)) == ["0"]
    assert network[0] is old
    assert not old.weight.requires_grad


def test_an_empty_place_is_skipped():
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_module("optional", None)
    assert replace_modules(network, is_linear, noisy) == ["0"]


def test_errors():
    with pytest.raises(ValueError, match=r"no module of Sequential is to be replaced; it has ReLU, Sequential"):
        replace_modules(nn.Sequential(nn.ReLU()), is_linear, noisy)
    with pytest.raises(ValueError, match=r"the root module \(Linear\) cannot replace itself"):
        replace_modules(nn.Linear(2, 2), is_linear, noisy)
