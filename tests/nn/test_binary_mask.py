import copy

import pytest
import torch
from torch import nn

from leyden.cli.export_formats import bake_parametrizations
from leyden.models import MLP, ConvNet
from leyden.nn import BinaryMask, apply_lora, apply_mask_tuning, binarize


def trained(network):
    return [name for name, p in network.named_parameters() if p.requires_grad]


def test_a_score_must_exceed_the_threshold():
    scores = torch.tensor([0.01, 0.005, 0.0050001, -1.0], dtype=torch.float64, requires_grad=True)
    mask = binarize(scores)
    assert mask.tolist() == [1.0, 0.0, 1.0, 0.0]
    mask.backward(torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64))
    assert scores.grad.tolist() == [1.0, -2.0, 0.5, 3.0]  # straight through, also where it is 0
    assert binarize(torch.tensor([0.2]), threshold=0.3).tolist() == [0.0]


def test_gradient_of_the_scores_by_hand():
    """dL/ds = dL/dw' w, also for masked weights."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert apply_mask_tuning(nn.Sequential(layer)) == ["0"]
    (mask,) = layer.parametrizations.weight
    mask.scores.data = torch.tensor([[0.01, 0.005], [0.0, 0.02]])
    output = layer(torch.tensor([[10.0, 1.0]]))
    assert output.tolist() == [[10.0, -4.0]]
    (output * torch.tensor([[1.0, 2.0]])).sum().backward()
    assert mask.scores.grad.tolist() == [[10.0, 2.0], [60.0, -8.0]]  # outer((1, 2), (10, 1)) * weight
    assert layer.parametrizations.weight.original.grad is None


def test_a_network_starts_as_it_was_and_trains_scores_alone():
    torch.manual_seed(0)
    network = ConvNet(1, 10, width=4).eval()
    x = torch.randn(3, 1, 8, 8)
    before = network(x)
    names = apply_mask_tuning(network)
    assert "head" in names
    assert torch.equal(network(x), before)
    assert trained(network) == [f"{name}.parametrizations.weight.0.scores" for name in names]
    assert apply_mask_tuning(network) == names  # once is enough
    assert trained(network) == [f"{name}.parametrizations.weight.0.scores" for name in names]
    assert all(len(network.get_submodule(name).parametrizations.weight) == 1 for name in names)


def test_match_and_skip():
    network = MLP(6, 3, (8, 8))
    assert apply_mask_tuning(network, ["body.3", "head"], skip=["body.0"], init=0.5, threshold=0.1) == [
        "body.3",
        "head",
    ]
    assert trained(network) == [
        "body.0.weight",
        "body.0.bias",
        "body.3.parametrizations.weight.0.scores",
        "head.parametrizations.weight.0.scores",
    ]
    (mask,) = network.head.parametrizations.weight
    assert (mask.threshold, mask.scores.unique().tolist()) == (0.1, [0.5])


def test_baked_weights_give_the_same_outputs_and_cost_one_bit_each():
    torch.manual_seed(0)
    network, plain = MLP(6, 3, (8,)), MLP(6, 3, (8,))
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    apply_mask_tuning(network)
    for name, p in network.named_parameters():
        if name.endswith("scores"):
            p.data = torch.rand(p.shape) / 100
    x = torch.randn(5, 6)
    expected = network(x)
    bake_parametrizations(network)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(plain(x), expected)
    for name, p in plain.named_parameters():
        kept = p != 0.0
        assert torch.equal(p, kept * weights[name])  # bits and the old weights make the new ones
        assert name.endswith("bias") or 0.2 < kept.float().mean() < 0.8


def test_half_precision_and_copies():
    layer = nn.Linear(4, 4).bfloat16()
    apply_mask_tuning(nn.Sequential(layer))
    (mask,) = layer.parametrizations.weight
    assert mask.scores.dtype == torch.float32  # steps of 1e-5 are lost in bfloat16
    assert layer.weight.dtype == torch.bfloat16
    x = torch.randn(2, 4).bfloat16()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_bad_input():
    with pytest.raises(ValueError, match="init must be larger than threshold, got init=0.001 and threshold=0.005"):
        BinaryMask((2, 2), init=1e-3)
    with pytest.raises(ValueError, match="match: 'blocks' matches none of the linear layers.*body.0, head"):
        apply_mask_tuning(MLP(6, 3, (8,)), ["blocks"])
    with pytest.raises(ValueError, match="skip: there is no module 'haed' in MLP; near it: head"):
        apply_mask_tuning(MLP(6, 3), skip=["haed"])
    with pytest.raises(ValueError, match="'\\*' matches none .* of which there are none"):
        apply_mask_tuning(nn.ReLU())
    network = MLP(6, 3, (8,))
    apply_lora(network, rank=2)
    with pytest.raises(ValueError, match="this network has LoRA's updates: apply one of the two"):
        apply_mask_tuning(network)
