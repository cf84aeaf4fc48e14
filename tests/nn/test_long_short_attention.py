import math

import pytest
import torch
from torch.nn import functional

from leyden.nn import LongShortAttention, long_short_attention


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def qkv(length, num_heads=3, head_dim=4):
    return [randn(2, num_heads, length, head_dim, seed=seed) for seed in range(3)]


def by_loops(q, k, v, window, global_heads, is_causal):
    """The definition, one query and one key at a time."""
    out = torch.zeros_like(q)
    offset = k.shape[2] - q.shape[2]
    for n in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                at = i + offset
                seen = [
                    j
                    for j in range(k.shape[2])
                    if (not is_causal or j <= at) and (h < global_heads or abs(at - j) < window)
                ]
                scores = [math.exp(q[n, h, i] @ k[n, h, j] / math.sqrt(q.shape[3])) for j in seen]
                for j, score in zip(seen, scores, strict=True):
                    out[n, h, i] += score / sum(scores) * v[n, h, j]
    return out


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("global_heads", [0, 1, 2])
@pytest.mark.parametrize(("length", "window"), [(7, 2), (12, 3), (13, 4), (9, 1), (6, 5)])
def test_equals_the_definition(length, window, global_heads, is_causal):
    q, k, v = qkv(length)
    ours = long_short_attention(q, k, v, window=window, global_heads=global_heads, is_causal=is_causal)
    torch.testing.assert_close(ours, by_loops(q, k, v, window, global_heads, is_causal))


@pytest.mark.parametrize("num_queries", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_queries_that_are_the_last_of_the_keys(num_queries, window):
    q, k, v = qkv(8)
    q = q[:, :, -num_queries:]
    torch.testing.assert_close(long_short_attention(q, k, v, window=window), by_loops(q, k, v, window, 1, True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("arguments", [{"window": 9, "global_heads": 1}, {"window": 2, "global_heads": 3}])
def test_everything_global_is_ordinary_attention(arguments, is_causal):
    q, k, v = qkv(9)
    ours = long_short_attention(q, k, v, is_causal=is_causal, **arguments)
    plain = functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-15)


def test_a_window_of_one_returns_the_values():
    q, k, v = qkv(9)
    torch.testing.assert_close(long_short_attention(q, k, v, window=1, global_heads=0), v)


def test_a_key_reaches_local_queries_of_its_window_only():
    q, k, v = qkv(20)
    moved = k.clone()
    moved[:, :, 5] += 1.0
    difference = long_short_attention(q, moved, v, window=4) - long_short_attention(q, k, v, window=4)
    changed = difference.abs().sum((0, 3)) > 0.0  # [H, T]
    assert changed[0].nonzero().flatten().tolist() == list(range(5, 20))
    for head in (1, 2):
        assert changed[head].nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_gradients_of_blocks_equal_those_of_the_whole_mask():
    tensors = [part.requires_grad_() for part in qkv(11)]
    at = torch.arange(11)
    distance = at.unsqueeze(-1) - at
    mask = torch.stack([distance >= 0, *2 * [(distance >= 0) & (distance < 3)]])
    weight = randn(2, 3, 11, 4, seed=7)
    ours = torch.autograd.grad((weight * long_short_attention(*tensors, window=3)).sum(), tensors)
    masked = functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    for one, other in zip(ours, torch.autograd.grad((weight * masked).sum(), tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_layer():
    torch.manual_seed(0)
    layer = LongShortAttention(12, 3, window=2).double().requires_grad_(False)
    x = randn(2, 7, 12)
    q, k, v = (t.view(2, 7, 3, 4).transpose(1, 2) for t in (x @ layer.qkv.weight.T + layer.qkv.bias).split(12, -1))
    attended = by_loops(q, k, v, 2, 1, True).transpose(1, 2).reshape(2, 7, 12)
    torch.testing.assert_close(layer(x), layer.proj(attended))
    assert sum(p.numel() for p in LongShortAttention(12, 3, bias=False).parameters()) == 4 * 12 * 12


def test_bad_input():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        long_short_attention(*qkv(3), window=0)
    with pytest.raises(ValueError, match=r"global_heads must lie in 0..3 \(the heads\), got 4"):
        LongShortAttention(12, 3, global_heads=4)
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads"):
        LongShortAttention(12, 5)
