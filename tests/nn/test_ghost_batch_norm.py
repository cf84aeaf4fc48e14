import copy
import math

import pytest
import torch
from torch import nn

from leyden.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, convert_ghost_batch_norm

KINDS = [
    (GhostBatchNorm1d, nn.BatchNorm1d, ()),
    (GhostBatchNorm1d, nn.BatchNorm1d, (5,)),
    (GhostBatchNorm2d, nn.BatchNorm2d, (3, 2)),
    (GhostBatchNorm3d, nn.BatchNorm3d, (2, 3, 2)),
]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(ghost_class, plain_class, ghost_batch_size: int, **kwargs):
    """Both kinds, with the same weights."""
    plain = plain_class(4, **kwargs).double()
    with torch.no_grad():
        for number, parameter in enumerate(plain.parameters()):
            parameter.copy_(torch.linspace(0.5, 2.0 + number, 4))
    ghost = ghost_class(4, ghost_batch_size, **kwargs).double()
    ghost.load_state_dict(plain.state_dict())
    return ghost, plain


def gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    target = torch.linspace(-1.0, 1.0, x.numel(), dtype=torch.float64).view_as(x)
    loss = (module(x) - target).square().mean()
    return list(torch.autograd.grad(loss, [x, *module.parameters()]))


def test_numbers_by_hand():
    norm = GhostBatchNorm1d(1, ghost_batch_size=2, eps=1e-15).double()
    out = norm(torch.tensor([[1.0], [3.0], [10.0], [20.0]], dtype=torch.float64))
    assert out.flatten().tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])
    # means 2 and 15, unbiased variances 2 and 50, in this order, with momentum 0.1
    assert norm.running_mean.item() == pytest.approx(0.9 * (0.1 * 2) + 0.1 * 15)
    assert norm.running_var.item() == pytest.approx(0.9 * (0.9 + 0.1 * 2) + 0.1 * 50)
    assert norm.num_batches_tracked.item() == 2


@pytest.mark.parametrize(("ghost_class", "plain_class", "shape"), KINDS)
@pytest.mark.parametrize("num_rows", [8, 7, 3])
def test_one_ghost_is_batch_norm(ghost_class, plain_class, shape, num_rows):
    ghost, plain = pair(ghost_class, plain_class, 8)
    x = randn(num_rows, 4, *shape)
    torch.testing.assert_close(ghost(x), plain(x), rtol=0, atol=0)
    for ours, theirs in zip(gradients(ghost, x), gradients(plain, x), strict=True):
        assert torch.equal(ours, theirs)
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[name], tensor)


@pytest.mark.parametrize(("ghost_class", "plain_class", "shape"), KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_same_as_accumulating_over_small_batches(ghost_class, plain_class, shape, momentum):
    """What the authors' loop does: chunks one after another, gradients divided by their number."""
    ghost, plain = pair(ghost_class, plain_class, 4, momentum=momentum)
    x = randn(12, 4, *shape)
    chunks = x.clone().requires_grad_()
    targets = torch.linspace(-1.0, 1.0, x.numel(), dtype=torch.float64).view_as(x).chunk(3)
    for chunk, target in zip(chunks.chunk(3), targets, strict=True):
        ((plain(chunk) - target).square().mean() / 3).backward()
    expected = [chunks.grad, *(parameter.grad for parameter in plain.parameters())]
    for ours, theirs in zip(gradients(ghost, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("num_rows", "sizes"), [(11, [4, 4, 3]), (8, [4, 4]), (5, [5]), (1, [1])])
def test_parts_of_nearly_equal_size(num_rows, sizes):
    norm = GhostBatchNorm2d(4, ghost_batch_size=3 if num_rows == 11 else 4).double()
    x = randn(num_rows, 4, 2, 2)
    expected = [
        (part - part.mean((0, 2, 3), keepdim=True)) / (part.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        for part in x.split(sizes)
    ]
    torch.testing.assert_close(norm(x), torch.cat(expected))
    assert norm.num_batches_tracked == len(sizes)


def test_ghosts_do_not_see_each_other():
    x, order = randn(6, 4), [2, 3, 4, 5, 0, 1]
    shift = torch.tensor([0.0, 0.0, 7.0, 7.0, 0.0, 0.0], dtype=torch.float64).unsqueeze(-1)
    norm = GhostBatchNorm1d(4, ghost_batch_size=2).double()
    out = norm(x)
    assert torch.equal(norm(x[order]), out[order])
    torch.testing.assert_close(norm(x + shift), out, rtol=0, atol=1e-9)


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_evaluation_is_that_of_batch_norm(track_running_stats):
    ghost, plain = pair(GhostBatchNorm1d, nn.BatchNorm1d, 2, track_running_stats=track_running_stats)
    ghost(randn(8, 4))
    plain.load_state_dict(ghost.state_dict())
    assert torch.equal(ghost.eval()(randn(6, 4)), plain.eval()(randn(6, 4)))


def test_half_precision_keeps_statistics_in_float32():
    norm = GhostBatchNorm1d(1, ghost_batch_size=2)
    x = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norm(x.bfloat16())
    assert norm.running_mean.dtype == torch.float32
    assert norm.running_mean.item() == pytest.approx(0.9 * (0.1 * 2) + 0.1 * 15)


def network() -> nn.Sequential:
    shared = nn.BatchNorm1d(6, eps=1e-3, momentum=0.3)
    net = nn.Sequential(
        nn.Conv1d(2, 6, 1), nn.Sequential(shared), nn.Flatten(), nn.BatchNorm1d(6, affine=False), shared
    ).double()
    for number, buffer in enumerate(net.buffers()):
        buffer.add_(number)
    return net


def test_conversion_keeps_everything_but_the_class():
    net = network()
    net[1][0].weight.requires_grad_(False)
    before, parameters = copy.deepcopy(net), list(net.parameters())
    assert convert_ghost_batch_norm(net.eval(), ghost_batch_size=3) is net
    assert [type(net[1][0]), type(net[3]), net[3].ghost_batch_size] == [GhostBatchNorm1d, GhostBatchNorm1d, 3]
    assert net[1][0] is net[4]
    assert (net[4].eps, net[4].momentum, net[3].affine, net[3].training) == (1e-3, 0.3, False, False)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert not net[1][0].weight.requires_grad
    torch.testing.assert_close(dict(net.state_dict()), dict(before.state_dict()), rtol=0, atol=0)
    x = randn(5, 2, 1)
    assert torch.equal(net(x), before.eval()(x))


def test_conversion_of_ghosts_changes_their_size():
    net = convert_ghost_batch_norm(network(), ghost_batch_size=3)
    convert_ghost_batch_norm(net, ghost_batch_size=4)
    assert net[3].ghost_batch_size == 4


def test_conversion_of_a_layer_returns_its_replacement():
    norm = convert_ghost_batch_norm(nn.BatchNorm3d(2), ghost_batch_size=16)
    assert type(norm) is GhostBatchNorm3d
    assert "ghost_batch_size=16" in repr(norm)


def test_compiles():
    norm = GhostBatchNorm1d(4, ghost_batch_size=3).double()
    compiled = torch.compile(copy.deepcopy(norm), backend="eager", fullgraph=True)
    x = randn(7, 4)
    torch.testing.assert_close(compiled(x), norm(x))


class OwnNorm(nn.BatchNorm2d):
    pass


def test_bad_input_is_refused():
    for size in (1, 0):
        with pytest.raises(ValueError, match=f"ghost_batch_size must be at least 2 .*, got {size}"):
            GhostBatchNorm2d(4, size)
    with pytest.raises(ValueError, match="ghost_batch_size must be at least 2"):
        convert_ghost_batch_norm(network(), ghost_batch_size=1)
    with pytest.raises(ValueError, match="1 is a SyncBatchNorm, which has no ghost batch norm"):
        convert_ghost_batch_norm(nn.Sequential(nn.BatchNorm1d(2), nn.SyncBatchNorm(2)))
    with pytest.raises(ValueError, match="module is a OwnNorm"):
        convert_ghost_batch_norm(OwnNorm(2))
    with pytest.raises(ValueError, match="no module of Linear is to be replaced"):
        convert_ghost_batch_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(4)(torch.zeros(2, 4))
    assert math.isfinite(GhostBatchNorm2d(4)(torch.zeros(1, 4, 2, 2)).sum().item())
