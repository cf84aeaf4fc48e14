import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from leyden.models import ConvNet


def test_learns_digits():
    images, target = load_digits(return_X_y=True)
    images, target = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(target)
    torch.manual_seed(0)
    train, test = torch.randperm(len(images)).split([1437, 360])
    network = ConvNet(width=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(4):
        for batch in train[torch.randperm(len(train))].split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    assert (network(images[test]).argmax(-1) == target[test]).float().mean() >= 0.95


@pytest.mark.parametrize("size", [4, 8, 28, 32])
def test_any_image_size(size):
    assert ConvNet(2, 3, width=4)(torch.rand(2, 2, size, size)).shape == (2, 3)


def test_value_by_hand():
    # all-ones kernels on an image of ones: 9 in the middle, less at the zero-padded edge
    network = ConvNet(1, 1, width=1).double().eval()
    for layer in network.body:
        if isinstance(layer, nn.Sequential):
            nn.init.ones_(layer[0].weight)
            layer[1].eps = 0.0
    # 4x4 -> sums 4, 6 or 9, pooled 2x2 of 9 -> each sum 4 * 9 = 36 in 2 channels, pooled 1x1 -> 2 * 36 in 4 channels
    features = network.features(torch.ones(1, 1, 4, 4, dtype=torch.float64))
    assert features.tolist() == [[72.0] * 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(**arguments)
