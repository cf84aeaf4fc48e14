import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.nn import (
    DFPConv2d,
    DFPLinear,
    convert_to_dfp,
    dfp_dequantize,
    dfp_downconvert,
    dfp_matmul,
    dfp_quantize,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(x, bits):
    """Python's own integers and rounding."""
    values = [float(value) for value in x.flatten()]
    exponent = math.floor(math.log2(max(map(abs, values)))) - (bits - 2)
    limit = 2 ** (bits - 1) - 1
    mantissa = [max(-limit, min(limit, round(value * 2.0**-exponent))) for value in values]
    return mantissa, exponent


@pytest.mark.parametrize("scale", [1.0, 3e-9, 2.0**20, 5e30])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_equals_integers_of_python(bits, scale):
    x = scale * randn(3, 7)
    mantissa, exponent = dfp_quantize(x, bits)
    assert (mantissa.flatten().tolist(), exponent) == reference(x, bits)
    assert mantissa.dtype == torch.int32
    back = dfp_dequantize(mantissa, exponent)
    is_cut = mantissa.abs() == 2 ** (bits - 1) - 1
    assert (back - x).abs()[~is_cut].max() <= 2.0 ** (exponent - 1)
    assert dfp_quantize(back, bits)[1] == exponent
    assert torch.equal(dfp_quantize(back, bits)[0], mantissa)


def test_numbers_by_hand():
    mantissa, exponent = dfp_quantize(torch.tensor([1.0, 0.5, -0.3, 0.25]), 4)  # 1 = 4 * 2^-2
    assert (mantissa.tolist(), exponent) == ([4, 2, -1, 1], -2)
    assert dfp_quantize(torch.tensor([1.5, 0.375, 0.625]), 4)[0].tolist() == [6, 2, 2]  # halves go to the even one
    assert dfp_quantize(torch.tensor([1.99, -1.99]), 4)[0].tolist() == [7, -7]  # 8 would not fit
    zero = dfp_quantize(torch.zeros(2, 3))
    assert (zero[0].abs().sum().item(), zero[1]) == (0, 0)
    assert dfp_quantize(torch.zeros(0))[0].shape == (0,)


def test_symmetries():
    x = randn(50)
    mantissa, exponent = dfp_quantize(x)
    assert torch.equal(dfp_quantize(-x)[0], -mantissa)
    for power in (-140, -20, 3, 100):
        shifted = dfp_quantize(x.double() * 2.0**power)
        assert torch.equal(shifted[0], mantissa)
        assert shifted[1] == exponent + power


def test_powers_of_two_are_exact():
    for power in range(-300, 301):
        mantissa, exponent = dfp_quantize(torch.tensor([2.0**power], dtype=torch.float64))
        assert (mantissa.item(), exponent) == (2**14, power - 14)


def test_product_of_matrices_is_that_of_integers():
    a, b = randn(3, 5), 1e-3 * randn(5, 4, seed=1)
    (left, left_exponent), (right, right_exponent) = reference(a, 16), reference(b, 16)
    for i in range(3):
        for j in range(4):
            total = sum(left[5 * i + k] * right[4 * k + j] for k in range(5))
            expected = torch.tensor(math.ldexp(total, left_exponent + right_exponent), dtype=torch.float32)
            assert dfp_matmul(a, b)[i, j] == expected
    torch.testing.assert_close(dfp_matmul(a, b), a @ b, rtol=0, atol=1e-6)


def test_down_conversion():
    acc = torch.tensor([2**40 + 2**24, -(2**33) - 3, 5, 0])
    mantissa, exponent = dfp_downconvert(acc, -60)  # 41 bits to 15: a shift of 26
    assert exponent == -60 + 26
    assert mantissa.tolist() == [2**14, -(2**7), 0, 0]  # 2^14 + 1/4, -128 - tiny
    assert dfp_downconvert(torch.tensor([7, -3]), 5, bits=4)[0].tolist() == [7, -3]
    assert dfp_downconvert(torch.tensor([7, -3]), 5, bits=4)[1] == 5
    halves, shifted = dfp_downconvert(torch.tensor([12, 10, 14, -10, -14]), 0, bits=3)  # by 2 places
    assert (halves.tolist(), shifted) == ([3, 2, 3, -2, -3], 2)  # 2.5 to 2, 3.5 to 4, which is cut to 3
    a, b = torch.randint(-(2**15), 2**15, (2, 6, 6), generator=torch.Generator().manual_seed(0)).unbind()
    mantissa, exponent = dfp_downconvert(a @ b, 0)
    error = (dfp_dequantize(mantissa, exponent).double() - (a @ b).double()).abs().max().item()
    assert error <= 2.0 ** (exponent - 1)


def quantised(x, bits=16):
    mantissa, exponent = dfp_quantize(x, bits)
    return mantissa.double() * 2.0**exponent


@pytest.mark.parametrize("bits", [6, 16])
def test_linear_layer(bits):
    layer = DFPLinear(4, 3, bits=bits)
    x, gradient = randn(2, 5, 4).requires_grad_(), randn(2, 5, 3, seed=1)
    out = layer(x)
    out.backward(gradient)
    weight, inputs = quantised(layer.weight.detach(), bits), quantised(x.detach(), bits)
    torch.testing.assert_close(out, (inputs @ weight.T).float() + layer.bias, rtol=0, atol=0)
    outer = quantised(gradient, bits)
    torch.testing.assert_close(x.grad, (outer @ weight).float(), rtol=0, atol=0)
    expected = (outer.flatten(0, 1).T @ inputs.flatten(0, 1)).float()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.bias.grad, gradient.sum((0, 1)))


def test_convolution():
    layer = DFPConv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular", bits=8)
    x, gradient = randn(2, 4, 7, 7).requires_grad_(), randn(2, 6, 4, 4, seed=1)
    out = layer(x)
    out.backward(gradient)
    padded = functional.pad(quantised(x.detach(), 8), (1, 1, 1, 1), mode="circular").requires_grad_()
    weight = quantised(layer.weight.detach(), 8).requires_grad_()
    plain = functional.conv2d(padded, weight, stride=2, groups=2)
    torch.testing.assert_close(out, plain.float() + layer.bias.view(-1, 1, 1), rtol=0, atol=0)
    plain.backward(quantised(gradient, 8))
    torch.testing.assert_close(layer.weight.grad, weight.grad.float(), rtol=0, atol=0)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


def test_what_is_not_finite_is_seen():
    layer = DFPLinear(2, 2)
    assert layer(torch.tensor([[1.0, math.nan], [0.0, 1.0]])).isnan().all()
    x = torch.ones(1, 2, requires_grad=True)
    layer(x).backward(torch.tensor([[math.inf, 1.0]]))
    assert layer.weight.grad.isnan().all()
    assert layer(torch.zeros(0, 2)).shape == (0, 2)


def test_under_autocast():
    layer = DFPLinear(4, 3)
    x = randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), DFPLinear.forward(layer, x))
        assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-3)


def test_conversion_of_a_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8))
    network.add_module("head", nn.Linear(8, 3))
    network[2].bias.requires_grad_(False)
    weights = list(network.parameters())
    x = randn(2, 1, 4, 4)
    before = network(x)
    assert convert_to_dfp(network) == ["0", "2", "3"]
    assert [id(p) for p in network.parameters()] == [id(p) for p in weights]
    assert type(network.head) is nn.Linear
    torch.testing.assert_close(network(x), before, rtol=0, atol=2e-3)
    convert_to_dfp(network, bits=4, skip=())
    assert network[0].bits == network.head.bits == 4
    assert (network(x) - before).abs().max() > 1e-2


def test_bad_input():
    with pytest.raises(ValueError, match="x must be finite, but its largest magnitude is inf"):
        dfp_quantize(torch.tensor([1.0, -math.inf]))
    with pytest.raises(ValueError, match="bits must lie in 2..16, got 17"):
        DFPLinear(2, 2, bits=17)
    with pytest.raises(ValueError, match="bits must lie in 2..16, got 1"):
        dfp_quantize(torch.ones(1), 1)
    with pytest.raises(ValueError, match=r"acc must be int64, got torch.float32"):
        dfp_downconvert(torch.ones(1), 0)
    with pytest.raises(ValueError, match="skip: there is no module 'head' in Sequential"):
        convert_to_dfp(nn.Sequential(nn.Linear(2, 2)))
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match="0 is parametrized already: convert the network to DFP first"):
        convert_to_dfp(nn.Sequential(layer), skip=())
