import pytest
import torch
from torch import nn

from leyden.models import ResNet


# By hand from table 1 of the paper with the 3x3 stem; 18 and 50 are also the published counts for CIFAR-10.
@pytest.mark.parametrize(("depth", "expected"), [(18, 11_173_962), (34, 21_282_122), (50, 23_520_842)])
def test_number_of_parameters(depth, expected):
    with torch.device("meta"):
        network = ResNet(depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (50, 4)])
def test_stages(depth, expansion):
    network = ResNet(depth, width=4)
    x = network.conv1(torch.rand(2, 3, 32, 32))
    assert x.shape == (2, 4, 32, 32)
    for stage, size in enumerate((32, 16, 8, 4)):
        x = network.get_submodule(f"layer{stage + 1}")(x)
        assert x.shape == (2, 4 * 2**stage * expansion, size, size)


@pytest.mark.parametrize("depth", [18, 50])
def test_blocks_start_as_their_shortcut(depth):
    stage = ResNet(depth, width=4).layer3
    x = torch.rand(2, stage[1].conv1.in_channels, 8, 8)
    torch.testing.assert_close(stage[1:](x), x, rtol=0, atol=0)


@pytest.mark.parametrize(("depth", "layer_type"), [(18, "basic"), (50, "bottleneck")])
def test_equals_transformers(depth, layer_type):
    transformers = pytest.importorskip("transformers")
    depths = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    sizes = [4, 8, 16, 32] if depth == 18 else [16, 32, 64, 128]
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=sizes, depths=depths, layer_type=layer_type)
    reference = transformers.ResNetModel(config).double().eval()
    network = ResNet(depth, width=4).double().eval()
    generator = torch.Generator().manual_seed(0)
    for stage in range(4):
        blocks = network.get_submodule(f"layer{stage + 1}")
        for block, layer in zip(blocks, reference.encoder.stages[stage].layers, strict=True):
            pairs = [(layer.layer[number].convolution, layer.layer[number].normalization) for number in range(2)]
            ours = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            if depth == 50:
                pairs.append((layer.layer[2].convolution, layer.layer[2].normalization))
                ours.append((block.conv3, block.bn3))
            if isinstance(block.shortcut, nn.Sequential):
                pairs.append((layer.shortcut.convolution, layer.shortcut.normalization))
                ours.append((block.shortcut[0], block.shortcut[1]))
            for (convolution, norm), (our_convolution, our_norm) in zip(pairs, ours, strict=True):
                our_convolution.load_state_dict(convolution.state_dict())
                for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                our_norm.load_state_dict(norm.state_dict())
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=generator)
    stem = network.relu(network.bn1(network.conv1(x)))
    expected = reference.encoder(stem).last_hidden_state.mean((2, 3))
    assert expected.std() > 0.01
    torch.testing.assert_close(network.features(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, r"depth must be one of \[18, 34, 50\], got 20"),
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"width": 0}, "width must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
