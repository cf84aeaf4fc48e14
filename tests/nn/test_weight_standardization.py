"""Weight standardization against numpy, torch's convolutions, and its invariances."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from leyden.nn import WSConv1d, WSConv2d, WSConv3d, convert_weight_standardization, standardize_weight


def test_numpy():
    weight = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = weight.numpy().reshape(3, -1)
    wanted = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-3)
    torch.testing.assert_close(standardize_weight(weight, eps=1e-3), torch.from_numpy(wanted).view(3, 2, 5))


def test_scale_and_shift_of_a_channel_do_not_matter():
    weight = torch.randn(3, 2, 5, dtype=torch.float64)
    moved = weight * torch.tensor([2.0, 7.0, 0.5]).view(3, 1, 1) - torch.tensor([1.0, 0.0, 3.0]).view(3, 1, 1)
    torch.testing.assert_close(standardize_weight(moved, 1e-12), standardize_weight(weight, 1e-12))


def test_gradient_sums_to_zero_per_channel():
    weight = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((standardize_weight(weight) * torch.rand(3, 2, 5)).sum(), weight)
    torch.testing.assert_close(gradient.sum((1, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0.0)


def test_equal_weights_give_the_bias():
    conv = WSConv2d(2, 3, 3)
    nn.init.constant_(conv.weight, 0.7)
    out = conv(torch.rand(1, 2, 5, 5))
    torch.testing.assert_close(out, conv.bias.view(1, 3, 1, 1).expand_as(out), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("kind", "convolve"), [(WSConv1d, "conv1d"), (WSConv2d, "conv2d"), (WSConv3d, "conv3d")])
def test_convolutions(kind, convolve):
    conv = kind(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.rand(2, 4, *[6] * int(convolve[4]))
    wanted = getattr(functional, convolve)(x, standardize_weight(conv.weight), conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), wanted)


def test_half_precision_is_standardised_in_float32():
    weight = (100.0 + torch.randn(1, 64)).half()
    wanted = standardize_weight(weight.double())
    assert standardize_weight(weight).dtype == torch.float16
    torch.testing.assert_close(standardize_weight(weight).double(), wanted, atol=2e-3, rtol=2e-3)


def test_conversion_keeps_tensors_and_settings():
    shared = nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
    pointwise = nn.Conv2d(2, 2, 1, groups=2)
    module = nn.ModuleDict({"a": nn.Sequential(shared), "b": shared, "c": pointwise})
    before = dict(module.named_parameters(remove_duplicate=False))
    assert convert_weight_standardization(module) is module
    assert type(module["b"]) is WSConv2d
    assert module["a"][0] is module["b"]
    assert module["c"] is pointwise  # a single weight per channel has no variance
    assert (module["b"].stride, module["b"].padding_mode, module["b"].bias) == ((2, 2), "reflect", None)
    assert all(before[name] is tensor for name, tensor in module.named_parameters(remove_duplicate=False))
    assert type(convert_weight_standardization(nn.Conv1d(2, 2, 3))) is WSConv1d


def test_errors():
    with pytest.raises(ValueError, match=r"two or more weights per output channel, got \(3, 1, 1\)"):
        standardize_weight(torch.rand(3, 1, 1))
    with pytest.raises(ValueError, match="no module of Linear is to be replaced"):
        convert_weight_standardization(nn.Linear(2, 2))
