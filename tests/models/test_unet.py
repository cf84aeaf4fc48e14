import pytest
import torch

from leyden.models import UNet


def trained(**knobs):
    torch.manual_seed(0)
    network = UNet(**knobs)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    "knobs", [{"width": 4}, {"in_channels": 3, "width": 6, "multipliers": (1, 2, 3), "num_blocks": 2}]
)
def test_every_parameter_and_the_time_have_an_effect(knobs):
    network = trained(**knobs)
    x = torch.randn(2, knobs.get("in_channels", 1), 8, 12)
    output = network(x, torch.tensor([1.0, 200.0]))
    assert output.shape == x.shape
    output.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in network.named_parameters())
    other = network(x, torch.tensor([1.0, -300.0]))
    torch.testing.assert_close(other[0], output[0])
    assert not torch.allclose(other[1], output[1], atol=1e-3)


def test_begins_as_zero():
    assert not UNet(width=4)(torch.randn(2, 1, 8, 8), torch.ones(2)).any()


def test_sees_the_whole_picture_and_keeps_its_details():
    network = trained(width=4).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    network(x, torch.ones(1, dtype=torch.float64))[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(
    ("knobs", "match"),
    [({"width": 0}, "width"), ({"multipliers": ()}, "multipliers"), ({"dropout": 1.0}, "dropout")],
)
def test_refuses(knobs, match):
    with pytest.raises(ValueError, match=match):
        UNet(**knobs)


def test_refuses_images_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"sides that 4 divides, got \(8, 6\)"):
        UNet(width=4, multipliers=(1, 1, 1))(torch.zeros(1, 1, 8, 6), torch.ones(1))
