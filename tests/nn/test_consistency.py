import math

import pytest
import torch
from torch import nn

from leyden.nn import ConsistencyPrecond


class Times(nn.Module):
    def forward(self, x, time):
        self.x, self.time = x, time
        return torch.ones_like(x)


def test_scales_are_those_of_the_authors():
    network = Times()
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    sigma = torch.tensor([1.5], dtype=torch.float64)
    output = ConsistencyPrecond(network)(x, sigma)
    # `get_scalings_for_boundary_condition` of openai/consistency_models, by hand
    c_skip = 0.25 / (1.498**2 + 0.25)
    c_out = 1.498 * 0.5 / math.sqrt(1.5**2 + 0.25)
    assert output[0].tolist() == pytest.approx([c_skip + c_out, -2.0 * c_skip + c_out], rel=1e-12)
    assert network.x[0].tolist() == pytest.approx([1.0 / math.sqrt(2.5), -2.0 / math.sqrt(2.5)])
    assert network.time.item() == pytest.approx(250.0 * math.log(1.5))


def test_least_noise_is_left():
    x = torch.randn(3, 1, 2, 2)
    assert torch.equal(ConsistencyPrecond(Times())(x, torch.full((3,), 0.002)), x)


def test_network_gets_its_own_precision():
    network = nn.Bilinear(2, 1, 2).bfloat16()
    precond = ConsistencyPrecond(network)
    network.forward = lambda x, time: x if x.dtype == torch.bfloat16 else None
    assert precond(torch.ones(2, 2), torch.ones(2)).dtype == torch.float32


@pytest.mark.parametrize("name", ["sigma_data", "sigma_min"])
def test_refuses(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        ConsistencyPrecond(Times(), **{name: 0.0})
