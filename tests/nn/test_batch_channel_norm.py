"""Batch-channel norm against torch's norms and a loop over batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from leyden.models import ConvNet, batch_channel_normalized
from leyden.nn import (
    BatchChannelNorm1d,
    BatchChannelNorm2d,
    EstimatedBatchNorm1d,
    EstimatedBatchNorm2d,
    WSConv2d,
    convert_batch_channel_norm,
    frozen_running_stats,
)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_batch_norm_then_group_norm():
    norm, x = BatchChannelNorm2d(6, 3).double(), randn(0, 4, 6, 2, 5)
    with torch.no_grad():
        norm.bn.weight.copy_(randn(1, 6))
        norm.weight.copy_(randn(2, 3))
        norm.bias.copy_(randn(3, 3))
    batch = nn.BatchNorm2d(6).double()
    batch.load_state_dict(norm.bn.state_dict())
    groups = nn.GroupNorm(3, 6, affine=False).double()
    per_channel = [tensor.repeat_interleave(2).view(1, 6, 1, 1) for tensor in (norm.weight, norm.bias)]
    torch.testing.assert_close(norm(x), groups(batch(x)) * per_channel[0] + per_channel[1])
    torch.testing.assert_close(norm.bn.running_var, batch.running_var)


def test_statistics_of_a_loop():
    norm = EstimatedBatchNorm2d(3, momentum=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(randn(1, 3))
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for step in range(4):
        x = 2.0 + randn(step, 2, 3, 4, 4)
        for c in range(3):
            values = x[:, c].flatten()
            variance[c] = 0.7 * variance[c] + 0.3 * sum((v - mean[c]) ** 2 for v in values) / len(values)
            mean[c] = 0.7 * mean[c] + 0.3 * sum(values) / len(values)
        wanted = norm.weight.view(3, 1, 1) * (x - mean.view(3, 1, 1)) / (variance.view(3, 1, 1) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x), wanted)
    norm.eval()
    torch.testing.assert_close(norm(x), wanted)
    assert norm.num_batches_tracked == 4


def test_statistics_are_constants_in_the_backward_pass():
    norm, x = EstimatedBatchNorm1d(2).double(), randn(0, 5, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    torch.testing.assert_close(gradient, (norm.running_var + 1e-5).rsqrt().expand(5, 2))


def test_two_passes_before_a_backward_pass():
    norm, x = EstimatedBatchNorm1d(2).double(), randn(0, 5, 2).requires_grad_()
    buffers, scales = list(norm.buffers()), []
    first = norm(x).sum()
    scales.append((norm.running_var + 1e-5).rsqrt())
    (first + norm(x).sum()).backward()
    scales.append((norm.running_var + 1e-5).rsqrt())
    torch.testing.assert_close(x.grad, sum(scales).expand(5, 2))
    assert all(one is other for one, other in zip(norm.buffers(), buffers, strict=True))  # averages of them hold these


def test_second_passes_can_leave_the_statistics():
    norm, x = EstimatedBatchNorm1d(2), torch.rand(5, 2)
    norm(x)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with frozen_running_stats(norm):
        torch.testing.assert_close(norm(x + 1.0), (x + 1.0 - norm.running_mean) / (norm.running_var + 1e-5).sqrt())
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())


def test_fresh_estimates_leave_a_group_norm():
    norm, x = BatchChannelNorm2d(6, 3, momentum=0.0, estimated=True).double(), randn(0, 4, 6, 3, 3)
    scale = (1.0 + 1e-5) ** -0.5  # of the batch norm, whose running statistics are 0 and 1
    torch.testing.assert_close(norm(x), functional.group_norm(scale * x, 3))
    torch.testing.assert_close(norm(x), norm.eval()(x))


def test_a_batch_of_one_trains():
    norm = BatchChannelNorm1d(4, 2, estimated=True)
    out = norm(torch.rand(1, 4))
    assert torch.isfinite(out).all()
    assert norm.bn.running_mean.abs().sum() > 0.0


def test_half_precision():
    norm = EstimatedBatchNorm2d(3)
    out = norm(torch.full((2, 3, 4, 4), 300.0).half())
    assert torch.isfinite(out).all()
    assert norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9 + 0.1 * 300.0**2))


def test_conversion():
    network = ConvNet(1, 10, width=4)
    with torch.no_grad():
        network.body[0][1].running_mean.fill_(3.0)
    assert convert_batch_channel_norm(network, 2) is network
    assert type(network.body[0][1]) is BatchChannelNorm2d
    assert type(network.body[0][1].bn) is nn.BatchNorm2d
    assert network.body[0][1].bn.running_mean.tolist() == [3.0] * 4
    small = batch_channel_normalized(ConvNet(1, 10, width=4), num_groups=4)
    assert type(small.body[2][1].bn) is EstimatedBatchNorm2d
    assert type(small.body[2][0]) is WSConv2d


def test_errors():
    with pytest.raises(ValueError, match="num_groups must divide num_features, 6, got 4"):
        BatchChannelNorm2d(6, 4)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 2"):
        EstimatedBatchNorm2d(3, momentum=2.0)
    with pytest.raises(ValueError, match="0 is a BatchNorm3d, which has no batch-channel norm"):
        convert_batch_channel_norm(nn.Sequential(nn.BatchNorm3d(4)))
    for option in ("affine", "track_running_stats"):
        with pytest.raises(ValueError, match="0 must have weights and running statistics"):
            convert_batch_channel_norm(nn.Sequential(nn.BatchNorm2d(4, **{option: False})), 2)
    with pytest.raises(ValueError, match="no module of Sequential is to be replaced"):
        convert_batch_channel_norm(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="expected 4D input"):
        EstimatedBatchNorm2d(3)(torch.rand(2, 3))
