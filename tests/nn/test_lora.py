import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from leyden.models import MLP, ConvNet, ViT
from leyden.nn import LoRALinear, apply_lora, merge_lora


def trained(network):
    return [name for name, p in network.named_parameters() if p.requires_grad]


def randomized(network):
    """B is no longer zero."""
    for name, p in network.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(p)
    return network


def test_output_by_hand():
    base = nn.Linear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        base.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    layer = LoRALinear(base, rank=1, alpha=0.5)
    with torch.no_grad():
        layer.lora_a.copy_(torch.tensor([[1.0, -2.0]]))
        layer.lora_b.copy_(torch.tensor([[2.0], [0.0], [4.0]]))
    # A x = 3 - 2 * 4 = -5; W x + b = (3, 5, 6); the update is 0.5 * (2, 0, 4) * -5
    output = layer(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    assert output.tolist() == [[-2.0, 5.0, -4.0]]


def test_starts_as_the_base_and_trains_two_factors():
    torch.manual_seed(0)
    base = nn.Linear(6, 5)
    x = torch.randn(4, 6)
    expected = base(x)
    layer = LoRALinear(base, rank=3)
    assert torch.equal(layer(x), expected)
    assert trained(layer) == ["lora_a", "lora_b"]
    assert layer.lora_a.shape == (3, 6)
    assert layer.lora_b.shape == (5, 3)
    assert layer.lora_a.abs().max() <= 6**-0.5  # the bound of nn.Linear
    assert layer.weight is base.weight
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert not layer.lora_a.grad.any()  # because B is zero
    assert layer.lora_b.grad.any()


@pytest.mark.parametrize("bias", [True, False])
def test_merged_layer_has_the_same_outputs(bias):
    torch.manual_seed(0)
    layer = randomized(LoRALinear(nn.Linear(6, 5, bias=bias, dtype=torch.float64), rank=2, alpha=3.0))
    x = torch.randn(4, 6, dtype=torch.float64)
    merged = layer.merge()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-12, atol=1e-12)
    assert trained(merged) == (["weight", "bias"] if bias else ["weight"])
    assert merged.weight.data_ptr() != layer.weight.data_ptr()
    assert torch.linalg.matrix_rank(merged.weight - layer.weight) == 2


def test_apply_to_a_network_and_merge():
    torch.manual_seed(0)
    network = ViT(8, 4, 10, in_channels=1, dim=8, depth=2, num_heads=2).eval()
    x = torch.rand(3, 1, 8, 8)
    before, names = network(x), set(network.state_dict())
    layers = apply_lora(network, rank=2, match=["*.q_proj", "*.v_proj"], skip=["head"])
    assert layers == [f"blocks.{i}.attention.{part}_proj" for i in (0, 1) for part in ("q", "v")]
    assert torch.equal(network(x), before)
    factors = [f"{layer}.lora_{factor}" for layer in layers for factor in "ab"]
    assert sorted(trained(network)) == sorted([*factors, "head.weight", "head.bias"])
    assert set(network.state_dict()) == names | set(factors)  # so that a file of plain weights still fits
    assert apply_lora(network, rank=2, match=["*.q_proj", "*.v_proj"], skip=["head"]) == layers  # once is enough
    assert sorted(trained(network)) == sorted([*factors, "head.weight", "head.bias"])
    assert not randomized(network).blocks[0].attention.q_proj.training
    tuned = network(x)
    assert not torch.allclose(tuned, before, atol=1e-3)
    merge_lora(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(x), tuned, rtol=1e-5, atol=1e-5)


def test_a_layer_in_two_places_stays_one():
    network = MLP(4, 4, (4,))
    network.head = network.body[0]
    apply_lora(network, rank=1)
    assert isinstance(network.head, LoRALinear)
    assert network.head is network.body[0]
    merge_lora(network)
    assert type(network.head) is nn.Linear
    assert network.head is network.body[0]


def test_other_kinds_of_layers_are_left_alone():
    attention = nn.MultiheadAttention(8, 2)  # reads the weights of its out_proj without calling it
    network = nn.Sequential(attention, nn.Linear(8, 8), nn.Conv1d(8, 8, 1))
    assert apply_lora(network, rank=1) == ["1"]
    assert trained(network) == ["1.lora_a", "1.lora_b"]
    with pytest.raises(ValueError, match=r"match: '\*' matches none of the linear layers, of which there are none"):
        apply_lora(nn.Sequential(nn.Conv1d(8, 8, 1)))


def test_bad_input():
    with pytest.raises(ValueError, match="rank must lie in 1..3 for a layer of 3 inputs and 5 outputs, got 4"):
        LoRALinear(nn.Linear(3, 5), rank=4)
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        LoRALinear(nn.Linear(3, 5), rank=1, alpha=0)
    network = MLP(4, 3, (4,))
    with pytest.raises(ValueError, match=r"match: '\*.q_proj' matches none of the linear layers, body.0, head"):
        apply_lora(network, match=["*.q_proj"])
    with pytest.raises(ValueError, match="skip: there is no module 'haed' in MLP; near it: head"):
        apply_lora(network, skip=["haed"])
    with pytest.raises(ValueError, match="rank must lie in 1..3"):
        apply_lora(network, rank=4)
    assert trained(network) == trained(MLP(4, 3, (4,))), "a refused network was changed"
    parametrizations.orthogonal(network.body[0])
    with pytest.raises(ValueError, match=r"body.0 is parametrized: apply LoRA before that"):
        apply_lora(network, rank=1)
    with pytest.raises(ValueError, match="matches none"):
        apply_lora(ConvNet(1, 10), skip=["head"])
