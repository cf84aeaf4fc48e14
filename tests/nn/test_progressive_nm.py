import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import DecayedNM, decayed_nm_weight, mask_decay_factor, sr_ste, structure_decay

# abhibambhaniya/progressive_gradient_flow_nm_sparsity, commit 4ee44a4, one line of its sparse_functions.py indented
# anew: LinearDecay and ExponentialDecay of `sin(1), ..., sin(8)` with 1:4 and the coefficient 0.01
AUTHORS = [
    ("linear", 30, [0.589030, 0.909297, 0.098784, -0.529762, -0.671247, -0.195591, 0.459891, 0.989358]),
    ("exp", 30, [0.623377, 0.909297, 0.104544, -0.560653, -0.710389, -0.206996, 0.486708, 0.989358]),
    ("linear", 300, [0.0, 0.909297, 0.0, 0.0, 0.0, 0.0, 0.0, 0.989358]),
]


@pytest.mark.parametrize(("kind", "step", "expected"), AUTHORS)
def test_numbers_of_the_authors_code(kind, step, expected):
    weight = torch.arange(1.0, 9.0).sin().view(1, 8).requires_grad_()
    out = decayed_nm_weight(weight, 1, 4, mask_decay_factor(step, kind=kind, coefficient=0.01))
    assert out.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    grad = torch.arange(8.0).view(1, 8)
    assert torch.equal(torch.autograd.grad(out, weight, grad)[0], grad)


def test_factor_by_hand():
    assert mask_decay_factor(0) == 1.0
    assert mask_decay_factor(250) == pytest.approx(0.75)
    assert mask_decay_factor(5000) == 0.0
    assert mask_decay_factor(700, kind="exp") == pytest.approx(math.exp(-0.7))
    assert mask_decay_factor(0, kind="step") == 0.0


def test_structures_of_the_authors_code():
    """The same commit, ``get_decay_config`` with ``SPARSIFY`` and ``FINE``."""
    assert structure_decay("stepwise", 1, 16) == [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]
    assert structure_decay("stepwise", 2, 8) == [(7, 8), (4, 8), (2, 8)]
    assert structure_decay("stepwise", 2, 4) == [(3, 4), (2, 4)]
    assert structure_decay("geometric", 1, 16) == [(8, 128), (4, 64), (2, 32), (1, 16)]
    assert structure_decay("geometric", 2, 4) == [(16, 32), (8, 16), (4, 8), (2, 4)]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (1, 8), (2, 16), (1, 32)])
def test_share_over_the_structures(n, m):
    stepwise, geometric = structure_decay("stepwise", n, m), structure_decay("geometric", n, m)
    assert stepwise[-1] == geometric[-1] == (n, m)
    shares = [kept / size for kept, size in stepwise]
    assert shares == sorted(shares, reverse=True)
    assert {kept / size for kept, size in geometric} == {n / m}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_factor_1_is_the_identity_and_0_is_sr_ste_without_decay(dtype):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(decayed_nm_weight(weight, 1, 8, 1.0), weight)
    assert torch.equal(decayed_nm_weight(weight, 1, 8, 0.0), sr_ste(weight, 1, 8, decay=0.0))
    assert decayed_nm_weight(weight, 1, 8, 0.3).dtype == dtype


def test_parametrization():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    dense = layer.weight.clone()
    part = DecayedNM(1, 8, factor=0.5)
    parametrize.register_parametrization(layer, "weight", part)
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    kept = dense.abs() == dense.abs().amax(1, keepdim=True)
    torch.testing.assert_close(layer.weight, torch.where(kept, dense, 0.5 * dense))
    part.factor.fill_(0.0)
    part.n = 2
    x = torch.randn(3, 8)
    output = layer(x)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), output)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(layer(x), output)
    assert layer.weight.count_nonzero() == 4 * 2
    assert "n=2, m=8" in repr(part)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="kind must be 'linear', 'exp' or 'step', got 'cosine'"):
        mask_decay_factor(1, kind="cosine")
    with pytest.raises(ValueError, match="step and coefficient must be at least 0, got -1 and 0.001"):
        mask_decay_factor(-1)
    with pytest.raises(ValueError, match="kind must be 'stepwise' or 'geometric', got 'fine'"):
        structure_decay("fine", 1, 4)
    for n, m in ((3, 8), (2, 12), (4, 4)):
        with pytest.raises(ValueError, match=f"m / n must be a power of 2, and at least 2, .* got n={n} and m={m}"):
            structure_decay("stepwise", n, m)
    with pytest.raises(ValueError, match="n must lie in 1 to m"):
        structure_decay("geometric", 5, 4)
