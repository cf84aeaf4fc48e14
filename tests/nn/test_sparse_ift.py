import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import (
    FixedMask,
    SparseDopedLinear,
    SparseFactorizedLinear,
    SparseParallelLinear,
    SparseWideLinear,
    iso_flop_branches,
    iso_flop_rank,
    iso_flop_width,
)


def test_sizes_by_hand():
    assert iso_flop_width(0.75) == 2.0
    assert [iso_flop_branches(s) for s in (0.0, 0.5, 0.75, 0.9)] == [1, 2, 4, 10]
    assert iso_flop_rank("factorized", 64, 64, 0.5) == 64  # 4096 / (0.5 * 128)
    assert iso_flop_rank("doped", 64, 64, 0.5) == 16  # 0.5 * 4096 / 128
    assert iso_flop_rank("doped", 9 * 64, 128, 0.9) == 94  # the authors' 3x3 convolution: floor(66355.2 / 704)


def test_without_sparsity_layers_are_plain():
    assert iso_flop_width(0.0) == 1.0
    assert iso_flop_branches(0.0) == 1
    assert iso_flop_rank("doped", 30, 20, 0.0) == 0
    torch.manual_seed(0)
    x = torch.randn(5, 30)
    doped = SparseDopedLinear(30, 20, 0.0)
    assert torch.equal(doped(x), doped.sparse(x))
    assert len(list(doped.parameters())) == 2
    parallel = SparseParallelLinear(30, 20, 0.0)
    assert torch.equal(parallel(x), parallel.branches[0](x).relu())


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_multiplications_are_those_of_the_dense_layer(sparsity):
    dense, row, density = 120 * 80, 120 + 80, 1.0 - sparsity
    wide = SparseWideLinear(120, 80, sparsity)
    assert density * wide.weight.numel() == pytest.approx(dense, rel=0.02)
    parallel = SparseParallelLinear(120, 80, sparsity)
    assert density * sum(branch.weight.numel() for branch in parallel.branches) == pytest.approx(dense)
    factorized = SparseFactorizedLinear(120, 80, sparsity)
    count = density * (factorized.u.weight.numel() + factorized.v.weight.numel())
    assert dense <= count < dense + row
    doped = SparseDopedLinear(120, 80, sparsity)
    count = density * doped.sparse.weight.numel() + doped.u.weight.numel() + doped.v.weight.numel()
    assert dense - row < count <= dense + 1e-6


def test_sides_of_a_wide_layer():
    first, last = SparseWideLinear(64, 32, 0.75, widen_in=False), SparseWideLinear(32, 10, 0.75, False, widen_out=False)
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (64, 64, 64, 10)
    assert last.bias is None


def test_outputs():
    torch.manual_seed(0)
    x = torch.randn(4, 12)
    parallel, factorized = SparseParallelLinear(12, 8, 0.5, activation=nn.Tanh), SparseFactorizedLinear(12, 8, 0.5)
    torch.testing.assert_close(parallel(x), parallel.branches[0](x).tanh() + parallel.branches[1](x).tanh())
    hidden = (x @ factorized.u.weight.T).relu()
    torch.testing.assert_close(factorized(x), hidden @ factorized.v.weight.T + factorized.v.bias)
    doped = SparseDopedLinear(12, 8, 0.5)
    whole = doped.sparse.weight + doped.v.weight @ doped.u.weight
    torch.testing.assert_close(doped(x), x @ whole.T + doped.sparse.bias)


def test_fixed_mask_lets_the_dense_gradient_through():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(5, 6)
    dense = copy.deepcopy(layer)
    mask = torch.rand(4, 6) < 0.5
    parametrize.register_parametrization(layer, "weight", FixedMask(mask))
    with torch.no_grad():
        dense.weight.mul_(mask)
    layer(x).pow(2).sum().backward()
    dense(x).pow(2).sum().backward()
    assert torch.equal(layer(x), dense(x))
    assert torch.equal(layer.parametrizations.weight.original.grad, dense.weight.grad)
    assert "parametrizations.weight.0.mask" in layer.state_dict()
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(layer.weight, dense.weight)


def test_bad_input_is_refused():
    for function in (iso_flop_width, iso_flop_branches):
        with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got 1.0"):
            function(1.0)
    with pytest.raises(ValueError, match="kind must be 'factorized' or 'doped', got 'wide'"):
        iso_flop_rank("wide", 4, 4, 0.5)
    with pytest.raises(ValueError, match="sparsity must lie in"):
        SparseDopedLinear(4, 4, -0.1)
