import math

import pytest
import torch

from leyden.models import KeyValueCache, SelfAttention, TransformerBlock
from leyden.nn import long_short_attention, qk_norm_attention

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attention_by_loops(layer, x, causal):
    """The formula of the paper, one query and one head at a time."""
    query, key, value = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[2], layer.head_dim):
            part = slice(start, start + layer.head_dim)
            for place in range(x.shape[1]):
                seen = place + 1 if causal else x.shape[1]
                scores = [
                    (query[row, place, part] @ key[row, other, part]).item() / math.sqrt(layer.head_dim)
                    for other in range(seen)
                ]
                total = sum(math.exp(score) for score in scores)
                for other, score in enumerate(scores):
                    out[row, place, part] += math.exp(score) / total * value[row, other, part]
    return layer.out_proj(out)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_formula(causal):
    torch.manual_seed(0)
    layer = SelfAttention(6, 3, causal=causal).double()
    torch.testing.assert_close(layer(X), attention_by_loops(layer, X, causal))


@pytest.mark.parametrize("chunks", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 1, 1), (1, 4)])
def test_cache_equals_one_pass(chunks):
    torch.manual_seed(0)
    layer, cache = SelfAttention(6, 2, causal=True).double(), KeyValueCache(8)
    with torch.no_grad():
        pieces = [layer(piece, cache) for piece in X.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), layer(X))
    assert cache.length == 5


def test_block_equals_torch_pre_norm_layer():
    torch.manual_seed(0)
    block = TransformerBlock(6, 2, mlp_ratio=1.5).double()
    reference = torch.nn.TransformerEncoderLayer(6, 2, 9, 0.0, "gelu", batch_first=True, norm_first=True).double()
    attention = block.attention
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([layer.weight for layer in projections]),
            "self_attn.in_proj_bias": torch.cat([layer.bias for layer in projections]),
            "self_attn.out_proj.weight": attention.out_proj.weight,
            "self_attn.out_proj.bias": attention.out_proj.bias,
            "linear1.weight": block.fc1.weight,
            "linear1.bias": block.fc1.bias,
            "linear2.weight": block.fc2.weight,
            "linear2.bias": block.fc2.bias,
        },
        strict=False,  # the norms start alike
    )
    torch.testing.assert_close(block(X), reference(X))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer = SelfAttention(6, 2, dropout=0.5).double()
    assert not torch.equal(layer(X), layer(X))
    layer.eval()
    assert torch.equal(layer(X), layer(X))


def test_without_bias():
    assert all(name.endswith("weight") for name, _ in TransformerBlock(6, 2, bias=False).named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 7}, "dim must be a multiple of num_heads, got dim=7 and num_heads=2"),
        ({"num_heads": 0}, "num_heads must be 1 or more, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"mlp_ratio": 0.1}, "mlp_ratio must give 1 or more hidden units, got 0.1 with dim=6"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformerBlock(**({"dim": 6, "num_heads": 2} | arguments))


@pytest.mark.parametrize("causal", [False, True])
def test_normalised_queries_and_keys(causal):
    torch.manual_seed(0)
    layer = SelfAttention(6, 2, causal=causal, qk_norm=True).double()
    with torch.no_grad():
        layer.q_norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        layer.k_norm.weight.copy_(torch.tensor([0.3, 1.0, 3.0]))
    heads = [p(X).view(2, 5, 2, 3).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    attended = qk_norm_attention(*heads, layer.q_norm.weight, layer.k_norm.weight, is_causal=causal)
    torch.testing.assert_close(layer(X), layer.out_proj(attended.transpose(1, 2).flatten(2)))
    logits = layer.logits(X)
    assert logits.isneginf().any() == causal
    again = logits.softmax(-1) @ heads[2]
    torch.testing.assert_close(again, attended)
    cache = KeyValueCache(5)
    if causal:
        pieces = [layer(piece, cache) for piece in X.split(2, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), layer(X))


def test_plain_attention_has_no_norms():
    assert sorted({name.split(".")[0] for name in SelfAttention(6, 2).state_dict()}) == [
        "k_proj",
        "out_proj",
        "q_proj",
        "v_proj",
    ]


@pytest.mark.parametrize(("window", "global_heads"), [(2, 1), (1, 0), (9, 1)])
def test_local_heads(window, global_heads):
    torch.manual_seed(0)
    layer = SelfAttention(6, 2, causal=True, window=window, global_heads=global_heads).double()
    heads = [p(X).view(2, 5, 2, 3).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    attended = long_short_attention(*heads, window=window, global_heads=global_heads)
    torch.testing.assert_close(layer(X), layer.out_proj(attended.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(layer.logits(X).softmax(-1) @ heads[2], attended)
    cache = KeyValueCache(5)
    pieces = [layer(piece, cache) for piece in X.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(X))
    with pytest.raises(ValueError, match="window must be"):
        SelfAttention(6, 2, window=0)
    with pytest.raises(ValueError, match=r"global_heads must lie in 0..2 \(num_heads\), got 3"):
        SelfAttention(6, 2, window=2, global_heads=3)
