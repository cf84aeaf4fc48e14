import math

import pytest
import torch
from torch import nn

from leyden.weights import add_signatures, quantize_signature, robust_weight_signature, shallow_keys


def linear(weight):
    return {"weight": torch.tensor(weight), "bias": torch.tensor([1.0, -1.0]), "steps": torch.tensor(7)}


PRETRAINED = linear([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
CLEAN = linear([[2.0, 2.0, 3.5], [4.0, 5.5, 5.0]])
ROBUST = linear([[1.5, 1.0, 3.25], [4.75, 5.0, 4.5]])


def random_states(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (30, 5), "b": (33,), "c": (4, 2, 3, 3)}
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    # robust training goes partly where clean training goes
    clean = {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in start.items()}
    robust = {
        name: x + 0.8 * (clean[name] - x) + 0.1 * torch.randn(x.shape, generator=generator) for name, x in start.items()
    }
    return [{name: x.to(dtype) for name, x in state.items()} for state in (robust, clean, start)]


def test_by_hand():
    # a = (1, 0, 0.5, 0, 0.5, -1), v = (0.5, -1, 0.25, 0.75, 0, -1.5): <v, a> = 2.125, <a, a> = 2.5, so v - 0.85 a.
    # get_projection of VITA-Group/Robust_Weight_Signatures (4c796da) prints the same six numbers
    result = robust_weight_signature(ROBUST, CLEAN, PRETRAINED, keys=["weight"])
    assert list(result) == ["weight"]
    expected = torch.tensor([[-0.35, -1.0, -0.175], [0.75, -0.425, -0.65]])
    torch.testing.assert_close(result["weight"], expected, rtol=0.0, atol=1e-7)
    patched = add_signatures(CLEAN, [result], strengths=[2.0])
    torch.testing.assert_close(patched["weight"], torch.tensor([[1.3, 0.0, 3.15], [5.5, 4.65, 3.7]]))
    assert torch.equal(patched["bias"], CLEAN["bias"])
    assert patched["steps"].item() == 7


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 1e-14)]
)
def test_against_float64_and_orthogonal(dtype, tolerance):
    robust, clean, start = random_states(dtype)
    result = robust_weight_signature(robust, clean, start, keys=["a", "[bc]"])
    assert list(result) == ["a", "b", "c"]
    for name, signature in result.items():
        assert signature.dtype == torch.promote_types(dtype, torch.float32)
        v, a = ((state[name].double() - start[name].double()).flatten() for state in (robust, clean))
        share = math.fsum((v * a).tolist()) / math.fsum((a * a).tolist())
        assert share > 0.3
        exact = (v - share * a).reshape(signature.shape)
        torch.testing.assert_close(signature.double(), exact, rtol=0.0, atol=tolerance)
        inner = torch.dot(signature.double().flatten(), a) / (signature.double().norm() * a.norm())
        assert abs(inner.item()) < 10 * tolerance
    assert torch.equal(robust["a"], random_states(dtype)[0]["a"])


def test_what_clean_training_changes_too_is_no_signature():
    _, clean, start = random_states()
    twice = {name: 2.0 * clean[name] - start[name] for name in start}
    for robust in (clean, twice):
        result = robust_weight_signature(robust, clean, start, keys=["*"])
        assert max(x.abs().max().item() for x in result.values()) < 1e-6
    robust = {name: x + 0.5 for name, x in start.items()}
    unchanged = robust_weight_signature(robust, start, start, keys=["a"])["a"]
    assert torch.equal(unchanged, robust["a"] - start["a"])


def test_patches_add_up_and_come_off():
    robust, clean, start = random_states()
    one = robust_weight_signature(robust, clean, start, keys=["a", "c"])
    other = {"a": torch.full((30, 5), 0.25), "b": torch.arange(33.0)}
    both = add_signatures(clean, [one, other], strengths=[0.5, 3.0])
    turned = add_signatures(clean, [other, one], strengths=[3.0, 0.5])
    for name, exact in {
        "a": clean["a"].double() + 0.5 * one["a"].double() + 0.75,
        "b": clean["b"].double() + 3.0 * torch.arange(33.0).double(),
        "c": clean["c"].double() + 0.5 * one["c"].double(),
    }.items():
        torch.testing.assert_close(both[name].double(), exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(turned[name].double(), exact, rtol=1e-6, atol=1e-6)
    off = add_signatures(add_signatures(clean, [one]), [one], strengths=[-1.0])
    torch.testing.assert_close(off, clean, rtol=0.0, atol=1e-6)
    still = add_signatures(clean, [one], strengths=[0.0])
    assert all(torch.equal(still[name], x) for name, x in clean.items())
    assert add_signatures({"a": clean["a"].bfloat16()}, [{"a": one["a"]}])["a"].dtype == torch.bfloat16


def test_first_layers_of_a_network():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, bias=False), nn.Linear(4, 3))
    state = network.state_dict()
    assert shallow_keys(state, 1) == ["0.weight", "0.bias"]
    assert shallow_keys(state, 2) == ["0.weight", "0.bias", "2.weight"]
    assert shallow_keys(state, 3) == ["0.weight", "0.bias", "2.weight", "3.weight", "3.bias"]
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=rf"num_layers must lie in 1\.\.3, got {wrong}"):
            shallow_keys(state, wrong)


def test_quantized():
    x = torch.tensor([-1.0, -0.4, 0.0, 0.3, 0.55, 2.0])
    # linear_quant of the authors' quantize_utils/func.py prints these for 4 levels
    assert quantize_signature({"x": x}, levels=4)["x"].tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0, 2.0]
    assert quantize_signature({"x": x}, levels=2)["x"].tolist() == [-1.0, -1.0, -1.0, -1.0, 2.0, 2.0]
    one = {"same": torch.full((3,), 0.1), "none": torch.empty(0)}
    kept = quantize_signature(one)
    assert torch.equal(kept["same"], one["same"])
    assert kept["none"].numel() == 0
    signature = robust_weight_signature(*random_states(), keys=["*"])
    for levels in (2, 16, 256, 65536):
        for name, rounded in quantize_signature(signature, levels=levels).items():
            full = signature[name]
            assert len(rounded.unique()) <= levels
            assert (rounded.min(), rounded.max()) == (full.min(), full.max())
            half_step = (full.max() - full.min()).item() / (levels - 1) / 2
            assert (rounded - full).abs().max().item() <= half_step + 1e-7
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        quantize_signature(signature, levels=1)


def test_wrong_arguments():
    robust, clean, start = random_states()
    with pytest.raises(ValueError, match="keys must be names of entries, there is no 'd'"):
        robust_weight_signature(robust, clean, start, keys=["a", "d"])
    with pytest.raises(ValueError, match="state dict 2 has no 'a'"):
        robust_weight_signature({"b": robust["b"]}, clean, start, keys=["a"])
    with pytest.raises(ValueError, match="the shapes of 'a' differ"):
        robust_weight_signature(robust | {"a": torch.zeros(1)}, clean, start, keys=["a"])
    with pytest.raises(ValueError, match=r"floating point entries, 'steps' is torch\.int64"):
        robust_weight_signature(ROBUST, CLEAN, PRETRAINED, keys=["*"])
    with pytest.raises(ValueError, match="strengths must be one per signature: 1 numbers, got 2"):
        add_signatures(clean, [{"a": start["a"]}], strengths=[1.0, 2.0])
    with pytest.raises(ValueError, match="has no 'd'"):
        add_signatures(clean, [{"d": start["a"]}])
    # a head of another shape does not matter where it is not patched
    other = start | {"b": torch.zeros(7)}
    assert robust_weight_signature(robust, clean, other, keys=["a"])["a"].shape == (30, 5)
