import math

import numpy as np
import pytest
import torch

from leyden.nn import GaussianSplat2d


def splat(num_gaussians=5, height=7, width=10):
    torch.manual_seed(0)
    network = GaussianSplat2d(num_gaussians, height, width).double()
    with torch.no_grad():
        network.log_width.add_(0.3 * torch.randn(num_gaussians, 2))
    return network


def image_by_hand(network, height, width):
    image = np.zeros((3, height, width))
    numbers = [p.detach().numpy() for p in (network.place, network.log_width, network.angle, network.color)]
    for place, log_width, angle, color in zip(*numbers, strict=True):
        axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for row in range(height):
            for column in range(width):
                away = axes @ (np.array([row - (height - 1) / 2, column - (width - 1) / 2]) - place)
                image[:, row, column] += color * np.exp(-0.5 * ((away / np.exp(log_width)) ** 2).sum())
    return image


def test_image_by_hand_for_any_input():
    network = splat()
    images = network(torch.zeros(2, 1))
    np.testing.assert_allclose(images[1].detach().numpy(), image_by_hand(network, 7, 10), atol=1e-12)
    assert torch.equal(images[0], images[1])
    images[0].sum().backward()
    assert all(p.grad.abs().min() > 0.0 for p in network.parameters())


def test_autocast_leaves_the_image():
    network = splat().float()
    with torch.autocast("cpu", torch.bfloat16):
        image = network(torch.zeros(1, 1))
    assert torch.equal(image, network(torch.zeros(1, 1)))


def test_pruned_gaussians_leave_the_sum():
    network, keep = splat(), torch.tensor([True, False, True, True, False])
    with torch.no_grad():
        network.color[~keep] = 0.0
        image = network(torch.zeros(1, 1))
        network.prune_(keep)
        assert [len(p) for p in network.parameters()] == [3] * 4
        torch.testing.assert_close(network(torch.zeros(1, 1)), image)


def test_split_gaussians_lie_beside_each_other_on_the_longer_axis():
    network = splat(3)
    with torch.no_grad():
        network.log_width[1] = torch.tensor([math.log(1.0), math.log(4.0)])  # longer in the second axis
        network.angle[1] = math.pi / 2  # which is that of the rows
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    network.densify_(torch.tensor([1]))
    after = dict(network.named_parameters())
    assert [len(p) for p in after.values()] == [4] * 4
    assert all(p.is_leaf and p.requires_grad for p in after.values())
    for name, p in after.items():
        assert torch.equal(p[[0, 2]], before[name][[0, 2]])
    torch.testing.assert_close(after["place"][[1, 3]].mean(0), before["place"][1])
    moved = after["place"][1] - before["place"][1]
    torch.testing.assert_close(moved.abs(), torch.tensor([2.0, 0.0], dtype=torch.float64))
    for row in (1, 3):
        torch.testing.assert_close(after["log_width"][row].exp(), torch.tensor([1.0, 4.0]).double() / 1.6)
        assert torch.equal(after["color"][row], before["color"][1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianSplat2d(0, 4, 4), "num_gaussians must be 1 or more, got 0"),
        (lambda: GaussianSplat2d(1, 4, 0), "width must be 1 or more, got 0"),
        (lambda: splat().prune_(torch.zeros(5).bool()), r"keep must be bool \[5\] and keep one or more"),
        (lambda: splat().prune_(torch.ones(5)), r"got torch.float32 \[5\]"),
        (lambda: splat().densify_(torch.tensor([5])), r"parents must be different numbers in 0\.\.4, got \[5\]"),
        (lambda: splat().densify_(torch.tensor([1, 1])), r"got \[1, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
