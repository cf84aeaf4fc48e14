import itertools

import pytest
import torch
from torch.nn.utils import prune

from leyden.weights import magnitude_prune, nm_mask, nm_prune


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- N:M masks


def test_mask_by_hand():
    weight = torch.tensor([[0.1, -3.0, 2.0, 0.5, 1.0, 1.0, -1.0, 1.0], [4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    expected = [[0, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1, 1]]  # among equals the lower index goes first
    assert nm_mask(weight).int().tolist() == expected
    assert nm_mask(weight, 1, 8).int().tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_mask_of_a_convolution_runs_along_its_channels():
    weight = randn(3, 8, 2, 5)
    mask = nm_mask(weight, 1, 4)
    for out, y, x, group in itertools.product(range(3), range(2), range(5), range(2)):
        channels = slice(4 * group, 4 * group + 4)
        best = weight[out, channels, y, x].abs().argmax()
        assert mask[out, channels, y, x].nonzero().flatten().tolist() == [best]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8), (3, 8), (4, 4), (1, 1)])
def test_exactly_n_of_every_m(n, m):
    weight = randn(6, 16).round()  # many equal ones
    assert (nm_mask(weight, n, m).unflatten(1, (-1, m)).sum(-1) == n).all()


def test_mask_is_that_of_a_pairwise_comparison():
    weight = randn(5, 16).mul(2).round()
    groups = weight.abs().unflatten(1, (-1, 8))
    index = torch.arange(8)
    smaller = (groups.unsqueeze(-2) < groups.unsqueeze(-1)) | (
        (groups.unsqueeze(-2) == groups.unsqueeze(-1)) & (index < index.unsqueeze(-1))
    )
    assert torch.equal(nm_mask(weight, 3, 8), (smaller.sum(-1) >= 8 - 3).flatten(1))


def test_nm_prune_keeps_what_the_mask_keeps():
    state = {"a": randn(4, 8), "bias": randn(4), "c": randn(2, 4, 3, 3, dtype=torch.bfloat16)}
    before = {name: tensor.clone() for name, tensor in state.items()}
    pruned = nm_prune(state, 1, 4)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert list(pruned) == list(state)
    assert pruned["bias"] is state["bias"]
    assert pruned["c"].dtype == torch.bfloat16
    for name in ("a", "c"):
        mask = nm_mask(state[name], 1, 4)
        assert torch.equal(pruned[name][mask], state[name][mask])
        assert pruned[name][~mask].count_nonzero() == 0
    assert nm_prune(state, 1, 4, keys=["a"])["c"] is state["c"]


# ---- by magnitude


def test_global_and_layer_by_hand():
    state = {"a": torch.tensor([[1.0, -2.0], [3.0, -4.0]]), "b": torch.tensor([[5.0, 0.5]]), "c": torch.tensor([0.0])}
    pruned = magnitude_prune(state, 0.5)
    assert pruned["a"].tolist() == [[0.0, 0.0], [3.0, -4.0]]
    assert pruned["b"].tolist() == [[5.0, 0.0]]
    pruned = magnitude_prune(state, 0.5, scope="layer")
    assert pruned["a"].tolist() == [[0.0, 0.0], [3.0, -4.0]]
    assert pruned["b"].tolist() == [[5.0, 0.0]]
    assert magnitude_prune(state, 1.0, keys=["b"])["b"].tolist() == [[0.0, 0.0]]
    assert magnitude_prune(state, 1.0)["c"] is state["c"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.9])
def test_same_as_torch(dtype, sparsity):
    layers = [torch.nn.Linear(30, 20), torch.nn.Linear(7, 5)]
    for number, layer in enumerate(layers):
        layer.weight.data = randn(*layer.weight.shape, seed=number, dtype=dtype)
    state = {str(number): layer.weight.detach().clone() for number, layer in enumerate(layers)}
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=sparsity)
    pruned = magnitude_prune(state, sparsity)
    for number, layer in enumerate(layers):
        assert torch.equal(pruned[str(number)], layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_number_of_zeros_is_exact_with_many_equal_weights(dtype, scope):
    state = {name: randn(17, 13, seed=seed).mul(3).round().div(8).to(dtype) for seed, name in enumerate("abc")}
    entries = 3 * 17 * 13
    for sparsity in (0.0, 0.13, 0.5, 0.77, 1.0):
        zeros = {name: (tensor == 0).sum().item() for name, tensor in state.items()}
        pruned = magnitude_prune(state, sparsity, scope=scope)
        found = {name: (tensor == 0).sum().item() for name, tensor in pruned.items()}
        if scope == "global":
            assert sum(found.values()) == max(round(sparsity * entries), sum(zeros.values()))
        else:
            assert all(found[name] == max(round(sparsity * 17 * 13), zeros[name]) for name in found)
        for name in state:
            kept = pruned[name] != 0
            assert torch.equal(pruned[name][kept], state[name][kept])
            if 0.0 < sparsity < 1.0 and scope == "layer":
                assert state[name][kept].abs().min() >= state[name][~kept].abs().max()


def test_mixed_precisions_are_compared_by_value():
    state = {"a": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([[2.0, 4.0]], dtype=torch.float64)}
    state["c"] = torch.tensor([[0.5, 5.0]], dtype=torch.bfloat16)
    pruned = magnitude_prune(state, 0.5)
    assert [pruned[name].tolist() for name in "abc"] == [[[0.0, 3.0]], [[0.0, 4.0]], [[0.0, 5.0]]]


def test_what_is_kept_shrinks_and_stays_under_another_scale():
    state = {"a": randn(9, 11).mul(4).round(), "b": randn(8, 8, seed=1)}
    previous = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in state.items()}
    for sparsity in (0.2, 0.4, 0.6, 0.8, 1.0):
        pruned = magnitude_prune(state, sparsity)
        scaled = magnitude_prune({name: 2.0 * tensor for name, tensor in state.items()}, sparsity)
        again = magnitude_prune(pruned, sparsity)
        for name, tensor in pruned.items():
            kept = tensor != 0
            assert not (kept & ~previous[name]).any()
            assert torch.equal(scaled[name], 2.0 * tensor)
            assert torch.equal(again[name], tensor)
            previous[name] = kept
    one = {"a": state["a"]}
    assert torch.equal(magnitude_prune(one, 0.3)["a"], magnitude_prune(one, 0.3, scope="layer")["a"])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))  # without equals, places do not matter
    shuffled = magnitude_prune({"b": state["b"].flatten()[order].view(8, 8)}, 0.3)["b"].flatten()
    assert torch.equal(shuffled, magnitude_prune({"b": state["b"]}, 0.3)["b"].flatten()[order])


def test_bad_input_is_refused():
    weight = randn(4, 6)
    with pytest.raises(ValueError, match=r"n must lie in 1 to m, got n=5 and m=4"):
        nm_mask(weight, 5, 4)
    with pytest.raises(ValueError, match=r"n must lie in 1 to m, got n=0"):
        nm_mask(weight, 0, 4)
    for wrong in (weight, randn(8)):
        with pytest.raises(ValueError, match=r"weight must be \[out, in, ...\] with a multiple of m=4 inputs, got \("):
            nm_mask(wrong)
    with pytest.raises(ValueError, match=r"conv: weight must be .*; leave it out by keys"):
        nm_prune({"conv": randn(4, 3, 3, 3)})
    with pytest.raises(ValueError, match=r"keys: there is no heads among head"):
        nm_prune({"head": weight}, keys=["heads"])
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.5"):
        magnitude_prune({"head": weight}, 1.5)
    with pytest.raises(ValueError, match=r"scope must be 'global' or 'layer', got 'row'"):
        magnitude_prune({"head": weight}, 0.5, scope="row")
