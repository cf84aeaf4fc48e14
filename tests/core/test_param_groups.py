from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.core import group_by_name, make_optimizer
from leyden.methods import Classification
from leyden.models import MLP
from leyden.optim import Lamb

SGD = partial(torch.optim.SGD, lr=0.4, weight_decay=0.1)


def network():
    return nn.ModuleDict({"body": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 1)})


def names(groups, module):
    known = {id(p): name for name, p in module.named_parameters()}
    return [[known[id(p)] for p in group["params"]] for group in groups]


def test_parameters_with_the_same_settings_make_one_group():
    module = network()
    patterns = {"norm.*": {"weight_decay": 0.0}, "*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 0.2}}
    groups = group_by_name(module.named_parameters(), patterns)
    assert names(groups, module) == [
        ["body.weight"],
        ["body.bias", "norm.weight", "norm.bias"],
        ["head.weight"],
        ["head.bias"],
    ]
    assert [{key: value for key, value in group.items() if key != "params"} for group in groups] == [
        {},
        {"weight_decay": 0.0},
        {"lr": 0.2},
        {"weight_decay": 0.0, "lr": 0.2},
    ]


def test_the_later_of_two_patterns_counts():
    module = network()
    patterns = {"*": {"lr": 0.1, "momentum": 0.9}, "body.*": {"lr": 0.2}, "body.b*": {"lr": 0.3}}
    groups = group_by_name(module.named_parameters(), patterns)
    assert [(group["lr"], group["momentum"]) for group in groups] == [(0.2, 0.9), (0.3, 0.9), (0.1, 0.9)]


def test_rates_are_multiples_of_the_optimizers():
    modules = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    patterns = {"*.bias": {"lr_scale": 0.5}, "b.weight": {"lr": 8.0}}
    optimizer = make_optimizer(SGD, modules, patterns, lr_scales={"b": 0.25})
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.2, 2.0, 0.05]
    assert all("lr_scale" not in group for group in optimizer.param_groups)


def test_a_step_uses_the_settings_of_the_groups():
    module = nn.Linear(1, 1)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    optimizer = make_optimizer(SGD, {"layer": module}, {"*.bias": {"weight_decay": 0.0, "lr_scale": 0.5}})
    module(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert module.weight.item() == pytest.approx(1.0 - 0.4 * (1.0 + 0.1))  # by hand: both gradients are 1
    assert module.bias.item() == pytest.approx(1.0 - 0.5 * 0.4)


def test_settings_of_the_optimizers_own():
    [_, bias] = make_optimizer(Lamb, {"layer": nn.Linear(1, 1)}, {"*.bias": {"adapt": False}}).param_groups
    assert bias["adapt"] is False


def test_what_needs_no_gradient_is_in_no_group_and_matches_nothing():
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    [group] = make_optimizer(SGD, {"layer": module}).param_groups
    assert group["params"] == [module.weight]
    with pytest.raises(MisconfigurationException, match=r"'\*.bias' matches none of the parameters layer.weight$"):
        make_optimizer(SGD, {"layer": module}, {"*.bias": {"lr": 0.1}})


def test_a_setting_that_the_optimizer_does_not_have():
    message = r"param_groups: '\*.bias' sets 'weight_decya', which SGD does not have; it may be .*lr, lr_scale, .*"
    with pytest.raises(MisconfigurationException, match=message):
        make_optimizer(SGD, {"layer": nn.Linear(1, 1)}, {"*.bias": {"weight_decya": 0.0}})


def test_a_method_has_groups_of_network_and_attached_parts():
    patterns = {"*.bias": {"weight_decay": 0.0}, "attached.part.weight": {"lr_scale": 3.0}}
    method = Classification(MLP(4, 3, (5,)), optimizer=SGD, param_groups=patterns)
    method.attach("part", nn.Linear(2, 2), lr_scale=0.5)
    groups = method.configure_optimizers().param_groups
    assert names(groups, method) == [
        ["network.body.0.weight", "network.head.weight"],
        ["network.body.0.bias", "network.head.bias"],
        ["attached.part.weight"],
        ["attached.part.bias"],
    ]
    assert [group["lr"] for group in groups] == pytest.approx([0.4, 0.4, 0.6, 0.2])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0]
