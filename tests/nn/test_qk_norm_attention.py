import math

import pytest
import torch

from leyden.nn import QKNormAttention, qk_norm_attention


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(q, k, v, q_weight, k_weight, *, is_causal):
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)

    def norm(x, weight):
        centred = x - x.mean()
        return weight * centred / torch.sqrt(centred.square().mean() + 1e-6)

    for n in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                keys = range(t + 1 if is_causal else k.shape[2])
                query = norm(q[n, h, t], q_weight)
                scores = [math.exp(query @ norm(k[n, h, s], k_weight) / math.sqrt(q.shape[3])) for s in keys]
                for s, score in zip(keys, scores, strict=True):
                    out[n, h, t] += score / sum(scores) * v[n, h, s]
    return out


@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_the_formula(is_causal):
    q, k, v = (randn(2, 3, 4, 5, seed=seed) for seed in range(3))
    weights = randn(5, seed=3), randn(5, seed=4)
    ours = qk_norm_attention(q, k, v, *weights, is_causal=is_causal)
    torch.testing.assert_close(ours, by_loops(q, k, v, *weights, is_causal=is_causal))


def test_scale_of_a_query_or_key_does_not_matter_and_logits_are_bounded():
    q, k, v = (randn(1, 2, 6, 8, seed=seed) for seed in range(3))
    ones = torch.ones(8, dtype=torch.float64)
    scales = torch.linspace(0.5, 100.0, 6, dtype=torch.float64).view(1, 1, 6, 1)
    plain = qk_norm_attention(q, k, v, ones, ones, eps=1e-14)
    torch.testing.assert_close(qk_norm_attention(scales * q, k, v, ones, ones, eps=1e-14), plain)
    torch.testing.assert_close(qk_norm_attention(q, scales * k, v, ones, ones, eps=1e-14), plain)
    values = torch.eye(6, dtype=torch.float64).expand(1, 2, 6, 6)  # then the output is the attention itself
    attention = qk_norm_attention(1e4 * q, 1e4 * q, values, ones, ones)
    assert (attention.amax(-1) / attention.amin(-1)).log().max() <= 2 * math.sqrt(8)  # logits within +-sqrt(D)


def test_layer():
    torch.manual_seed(0)
    layer = QKNormAttention(6, 2, bias=True, is_causal=True).double().requires_grad_(False)
    x = randn(2, 5, 6)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(6, -1)
    heads = [t.view(2, 5, 2, 3).transpose(1, 2) for t in (q, k, v)]
    attended = by_loops(*heads, layer.q_norm.weight, layer.k_norm.weight, is_causal=True)
    torch.testing.assert_close(layer(x), layer.proj(attended.transpose(1, 2).reshape(2, 5, 6)))
    assert sorted(dict(QKNormAttention(6, 2).named_parameters())) == [
        "k_norm.weight",
        "proj.weight",
        "q_norm.weight",
        "qkv.weight",
    ]
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads.*got dim=6 and num_heads=4"):
        QKNormAttention(6, 4)
