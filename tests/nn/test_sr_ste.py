import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import SRSTE, nm_mask, sr_ste


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(weight, grad, *args, **kwargs):
    weight = weight.clone().requires_grad_()
    sr_ste(weight, *args, **kwargs).backward(grad)
    return weight.grad


def test_numbers_of_the_authors_code_for_a_linear_layer():
    """aojunzz/NM-sparsity, commit a557d6b, ``Sparse.apply(weight, 2, 4, 0.0002)``, with a fourth None in backward."""
    weight = torch.tensor([[0.3, -1.2, 0.7, 0.05, -0.4, 0.9, -0.6, 1.5]])
    assert sr_ste(weight).tolist() == [pytest.approx([0.0, -1.2, 0.7, 0.0, 0.0, 0.9, 0.0, 1.5])]
    grad = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    expected = [1.000060, 2.0, 3.0, 4.000010, 4.999920, 6.0, 6.999880, 8.0]
    assert gradient(weight, grad).flatten().tolist() == pytest.approx(expected, abs=6e-7)


def test_numbers_of_the_authors_code_for_a_convolution():
    """The same, ``Sparse_NHWC.apply(weight, 1, 4, 0.25)`` with ``weight = arange(16).view(1, 4, 2, 2).sin()``."""
    weight = torch.arange(16.0).view(1, 4, 2, 2).sin()
    kept = {5: -0.958924, 8: 0.989358, 11: -0.999990, 14: 0.990607}
    expected = [kept.get(place, 0.0) for place in range(16)]
    assert sr_ste(weight, 1, 4).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    expected = [1.0, 1.210368, 1.227324, 1.035280, 0.810799, 1.0, 0.930146, 1.164247, 1.0, 1.103030, 0.863995, 1.0]
    expected += [0.865857, 1.105042, 1.0, 1.162572]
    found = gradient(weight, torch.ones_like(weight), 1, 4, decay=0.25)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_all_kept_is_the_identity():
    weight, grad = randn(3, 8), randn(3, 8, seed=1)
    assert torch.equal(sr_ste(weight, 4, 4, decay=0.5), weight)
    assert torch.equal(gradient(weight, grad, 4, 4, decay=0.5), grad)


def test_decay_pulls_pruned_entries_only():
    weight, grad = randn(4, 16), randn(4, 16, seed=1)
    mask = nm_mask(weight, 1, 8)
    plain = gradient(weight, grad, 1, 8, decay=0.0)
    assert torch.equal(plain, grad)
    pulled = gradient(weight, grad, 1, 8, decay=0.3)
    assert torch.equal(pulled[mask], plain[mask])
    torch.testing.assert_close(pulled[~mask] - plain[~mask], 0.3 * weight[~mask])


def test_a_step_along_the_pull_shrinks_pruned_entries():
    weight = randn(4, 8)
    moved = weight - 0.5 * gradient(weight, torch.zeros_like(weight), 2, 4, decay=0.2)
    mask = nm_mask(weight)
    assert torch.equal(moved[mask], weight[mask])
    torch.testing.assert_close(moved[~mask], 0.9 * weight[~mask])


def test_second_derivatives():
    weight = randn(2, 4).requires_grad_()
    (first,) = torch.autograd.grad(sr_ste(weight, decay=0.0).pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    mask = nm_mask(weight)
    torch.testing.assert_close(second, (6 * weight * mask).detach())


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.conv = nn.Conv2d(8, 4, 3, groups=2)


@pytest.fixture
def holder():
    torch.manual_seed(0)
    made = Holder()
    parametrize.register_parametrization(made.linear, "weight", SRSTE())
    parametrize.register_parametrization(made.conv, "weight", SRSTE(1, 4))
    return made


def test_parametrization_keeps_the_dense_weight_in_the_state_and_leaves_the_sparse_one(holder):
    x, image = torch.randn(5, 8), torch.randn(2, 8, 5, 5)
    outputs = holder.linear(x), holder.conv(image)
    dense = holder.state_dict()["linear.parametrizations.weight.original"]
    assert dense.count_nonzero() == dense.numel()
    again = copy.deepcopy(holder)
    again.load_state_dict(holder.state_dict())
    assert torch.equal(again.linear(x), outputs[0])
    for layer in (holder.linear, holder.conv):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert type(holder.linear) is nn.Linear
    assert torch.equal(holder.linear(x), outputs[0])
    assert torch.equal(holder.conv(image), outputs[1])
    assert holder.linear.weight.count_nonzero() == 6 * 8 // 2
    assert holder.conv.weight.count_nonzero() == 4 * 4 * 9 // 4


def test_mask_follows_the_weight_and_may_be_cached(holder):
    first = holder.linear.weight
    with parametrize.cached():
        assert holder.linear.weight is holder.linear.weight
    with torch.no_grad():
        holder.linear.parametrizations.weight.original.copy_(torch.arange(48.0).view(6, 8))
    assert holder.linear.weight[1].tolist() == [0.0, 0.0, 10.0, 11.0, 0.0, 0.0, 14.0, 15.0]
    assert not torch.equal(holder.linear.weight, first)
    holder.linear.weight = torch.ones(6, 8)
    assert holder.linear.weight[0].tolist() == [0.0, 0.0, 1.0, 1.0] * 2


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_compiles(holder):
    compiled = torch.compile(copy.deepcopy(holder.linear), backend="eager", fullgraph=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), holder.linear(x))
    compiled(x).square().sum().backward()
    holder.linear(x).square().sum().backward()
    torch.testing.assert_close(
        compiled.parametrizations.weight.original.grad, holder.linear.parametrizations.weight.original.grad
    )


def test_half_precision():
    weight = randn(4, 8).bfloat16().requires_grad_()
    out = sr_ste(weight)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert weight.grad.dtype == torch.bfloat16


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="decay must be at least 0, got -1"):
        sr_ste(randn(2, 4), decay=-1.0)
    with pytest.raises(ValueError, match=r"multiple of m=4 inputs, got \(2, 6\)"):
        sr_ste(randn(2, 6))
    assert "n=1, m=8, decay=0.0002" in repr(SRSTE(1, 8))
    assert math.isfinite(sr_ste(torch.zeros(2, 4)).sum())
