import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import SRSTE, to_semi_structured


def sparse_network(dtype=torch.float16):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10)).to(dtype)
    for layer in (network[0], network[2]):
        parametrize.register_parametrization(layer, "weight", SRSTE())
    return network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels need a CUDA GPU")
def test_outputs_are_those_of_the_dense_network():
    network, x = sparse_network().cuda().eval(), torch.randn(64, 128, dtype=torch.float16, device="cuda")
    with torch.no_grad():
        expected = network(x)
        assert to_semi_structured(network) == ["0", "2"]
        torch.testing.assert_close(network(x), expected, rtol=1e-2, atol=1e-2)
    assert "SemiStructured" in type(network[0].weight).__name__


def test_other_devices_and_dtypes_are_refused_and_nothing_is_changed():
    network = sparse_network()
    with pytest.raises(
        ValueError, match=r"^0\.weight must be float16 or bfloat16 on a CUDA device, got torch\.float16"
    ):
        to_semi_structured(network)
    assert parametrize.is_parametrized(network[0], "weight")


def test_a_network_without_sparse_weights_is_refused():
    with pytest.raises(ValueError, match="Sequential has no linear layer with a 2:4 sparse weight"):
        to_semi_structured(sparse_network(), skip=["0", "2"])
