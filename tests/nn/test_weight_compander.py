import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from leyden.cli.export_formats import bake_parametrizations
from leyden.models import GPT, MLP, ConvNet
from leyden.nn import SigmaReparam, WeightCompander, apply_sigma_reparam, apply_weight_compander

V = torch.tensor([-0.5, 0.0, 0.5, 0.5 * math.sqrt(3.0)], dtype=torch.float64)  # b = 0.5: arctan is a part of pi


def test_values_by_hand():
    compander = WeightCompander(2.0, 0.5).double()
    expected = torch.tensor([-math.pi / 2, 0.0, math.pi / 2, 2 * math.pi / 3], dtype=torch.float64)
    torch.testing.assert_close(compander(V).detach(), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(compander.right_inverse(expected).detach(), V, rtol=1e-6, atol=0)


def test_gradients_in_closed_form():
    """dw/dv = a b / (b^2 + v^2); by log a it is w, by log b it is -v dw/dv."""
    compander = WeightCompander(2.0, 0.5).double()
    v = V.clone().requires_grad_()
    w = compander(v)
    gradient = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    w.backward(gradient)
    slope = 1.0 / (0.25 + V.square())
    assert slope[1] == 4.0  # a / b at 0
    torch.testing.assert_close(v.grad, gradient * slope, rtol=1e-7, atol=0)
    torch.testing.assert_close(compander.log_a.grad, (gradient * w.detach()).sum().view(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(compander.log_b.grad, -(gradient * V * slope).sum().view(1), rtol=1e-7, atol=0)
    assert torch.autograd.gradcheck(compander, v)


def test_it_is_odd_bounded_and_nearly_the_identity_for_large_a_and_b():
    v = torch.linspace(-30.0, 30.0, 101, dtype=torch.float64)
    small, large = WeightCompander(0.3, 0.1).double(), WeightCompander(1e5, 1e5).double()
    assert torch.equal(small(-v), -small(v))
    assert (small(v).abs() < 0.3 * math.pi / 2).all()
    torch.testing.assert_close(large(v), v, rtol=1e-6, atol=0)


def test_assigned_weights_come_back_unless_they_are_beyond_the_bound():
    compander = WeightCompander(0.5, 0.2).double()
    weight = torch.tensor([-0.7, -1e-9, 0.0, 0.1, 0.77, 0.9, math.inf], dtype=torch.float64)
    back = compander(compander.right_inverse(weight)).detach()
    torch.testing.assert_close(back[:5], weight[:5], rtol=1e-12, atol=0)
    assert back[5:].tolist() == pytest.approx([0.99 * 0.5 * math.pi / 2] * 2)


@pytest.mark.parametrize("learnable", [True, False])
def test_a_network_starts_as_it_was(learnable):
    torch.manual_seed(0)
    network = ConvNet(1, 10, width=4).eval()
    x = torch.randn(3, 1, 8, 8)
    before, plain = network(x), dict(network.named_parameters())
    names = apply_weight_compander(network, a=0.6, b=0.2, learnable=learnable)
    torch.testing.assert_close(network(x), before)
    assert "head" in names
    changed = {f"{name}.weight" for name in names}
    now = dict(network.named_parameters())
    assert all(now[name] is p for name, p in plain.items() if name not in changed)  # biases and norms
    trained = [name for name, p in now.items() if name.endswith((".log_a", ".log_b")) and p.requires_grad]
    assert len(trained) == (2 * len(names) if learnable else 0)
    assert apply_weight_compander(network) == names  # once is enough
    assert all(len(network.get_submodule(name).parametrizations.weight) == 1 for name in names)
    assert apply_weight_compander(MLP(4, 3, (5, 6)), skip=["body"]) == ["head"]
    assert apply_weight_compander(ConvNet(1, 10, width=4), types=[nn.Linear]) == ["head"]


def test_a_step_of_gradient_descent_by_hand():
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 0.5 * math.pi / 4)
    apply_weight_compander(nn.Sequential(layer), a=0.5, b=0.25, learnable=False)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    layer(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    optimizer.step()
    # v = b; its slope is a / 2 b = 1, and decay acts on v
    v = 0.25 - 0.1 * (1.0 + 0.5 * 0.25)
    assert layer.weight.item() == pytest.approx(0.5 * math.atan(v / 0.25))


def test_baked_weights_give_the_same_outputs():
    torch.manual_seed(0)
    network, plain = MLP(6, 3, (8, 8)), MLP(6, 3, (8, 8))
    apply_weight_compander(network, a=0.6, b=0.2)
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x = torch.randn(5, 6)
    expected = network(x)
    bake_parametrizations(network)
    plain.load_state_dict(network.state_dict())  # the names are those of the network before
    assert torch.equal(plain(x), expected)


def test_state_round_trip_and_copy():
    networks = [MLP(6, 3, (8,)) for _ in range(2)]
    for network, a in zip(networks, (0.6, 0.7), strict=True):
        apply_weight_compander(network, a=a, b=0.2)
    networks[1].load_state_dict(copy.deepcopy(networks[0].state_dict()))
    x = torch.randn(5, 6)
    assert torch.equal(networks[1](x), networks[0](x))
    assert torch.equal(copy.deepcopy(networks[0])(x), networks[0](x))


def test_half_precision_is_computed_in_float32():
    v = torch.linspace(-2.0, 2.0, 41).bfloat16()
    assert torch.equal(WeightCompander().bfloat16()(v), torch.atan(v.float()).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(WeightCompander()(v.float()), torch.atan(v.float()))


def test_on_other_parametrizations():
    network = MLP(6, 3, (8,))
    parametrizations.weight_norm(network.head)
    apply_sigma_reparam(network, skip=["head"])
    inner = network.body[0].weight.detach()
    assert apply_weight_compander(network, a=2.0, b=1.0) == ["body.0", "head"]
    torch.testing.assert_close(network.body[0].weight.detach(), 2.0 * torch.atan(inner))
    kinds = [type(part) for part in network.body[0].parametrizations.weight]
    assert kinds == [SigmaReparam, WeightCompander]


def test_bad_input():
    for name, value in (("a", 0.0), ("b", -1.0), ("a", math.inf), ("b", math.nan)):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
            WeightCompander(**{name: value})
    with pytest.raises(ValueError, match="ReLU has no Linear and no Conv2d to reparametrize"):
        apply_weight_compander(nn.ReLU())
    with pytest.raises(ValueError, match="skip: there is no module 'haed' in MLP; near it: head"):
        apply_weight_compander(MLP(6, 3), skip=["haed"])
    large = MLP(6, 3, (8,))
    nn.init.constant_(large.head.weight, 2.0)
    with pytest.raises(ValueError, match=r"head: a=1.0 bounds weights to 1.56, but one is 2; increase a"):
        apply_weight_compander(large)
    tied = GPT(12, 4, dim=8, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="head: another layer uses this weight too; add 'head' to skip"):
        apply_weight_compander(tied)
    assert not any(parametrize.is_parametrized(layer) for layer in tied.modules())
    assert "head" not in apply_weight_compander(tied, skip=["head"])
