import pytest
import torch
from torch.nn import functional

from leyden.nn import BatchFormer, BatchFormerV2

X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # [N, D]
TOKENS = torch.randn(6, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # [N, L, D]


def make(part=BatchFormer, **arguments):
    torch.manual_seed(0)
    former = part(8, **{"heads": 2, "dropout": 0.0} | arguments).double()
    for parameter in former.parameters():  # so that no bias is 0, and no scale 1
        torch.nn.init.normal_(parameter, std=0.5)
    return former


def encoded_by_hand(layer, x, heads=2):
    """A transformer encoder layer, norms last, over the N rows of ``x``, from its weights alone."""
    q, k, v = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, -1)  # [N, D]
    mixed = []
    for part in range(heads):
        columns = slice(part * 8 // heads, (part + 1) * 8 // heads)
        scores = q[:, columns] @ k[:, columns].T / (8 / heads) ** 0.5
        mixed.append((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v[:, columns])
    attended = torch.cat(mixed, -1) @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
    x = normalized(x + attended, layer.norm1)
    hidden = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0.0)
    return normalized(x + hidden @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)


def normalized(x, norm):
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def test_values_by_hand():
    former = make()
    features, target = former(X, torch.arange(5))
    assert torch.equal(features[:5], X)
    torch.testing.assert_close(features[5:], encoded_by_hand(former.encoder, X))
    assert target.tolist() == [0, 1, 2, 3, 4] * 2
    soft = torch.rand(5, 3)
    assert torch.equal(former(X, soft)[1], torch.cat([soft, soft]))
    assert former(X)[1] is None


def test_the_default_has_the_sizes_of_the_authors():
    layer = BatchFormer(16).encoder
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (4, 16, 0.5)
    assert not layer.norm_first
    assert BatchFormer(16, hidden_dim=32).encoder.linear1.out_features == 32


def test_with_no_output_of_attention_and_mlp_it_normalises_twice():
    former = BatchFormer(8, 2, dropout=0.0).double()
    for layer in (former.encoder.self_attn.out_proj, former.encoder.linear2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    twice = functional.layer_norm(functional.layer_norm(X, (8,)), (8,))
    torch.testing.assert_close(former(X)[0][5:], twice)


def test_permuted_batch_and_batch_of_one():
    former, order = make(), torch.tensor([3, 0, 4, 1, 2])
    plain, encoded = former(X)[0].chunk(2)
    permuted_plain, permuted_encoded = former(X[order])[0].chunk(2)
    assert torch.equal(permuted_plain, plain[order])
    torch.testing.assert_close(permuted_encoded, encoded[order])
    torch.testing.assert_close(former(X[:1])[0][1:], encoded_by_hand(former.encoder, X[:1]))


def test_evaluation_is_the_identity():
    target = torch.arange(5)
    features, same = make().eval()(X, target)
    assert features is X
    assert same is target
    assert make(BatchFormerV2).eval()(TOKENS) is TOKENS
    assert make(BatchFormerV2, first=False).eval()(TOKENS[:5]).shape == (5, 3, 8)


def test_tokens_attend_to_the_same_place_of_other_samples():
    former = make(BatchFormerV2)
    plain, encoded = former(TOKENS).chunk(2)
    assert torch.equal(plain, TOKENS)
    for place in range(3):
        torch.testing.assert_close(encoded[:, place], encoded_by_hand(former.encoder, TOKENS[:, place]))


def test_later_insertions_encode_the_second_half_and_may_share_the_encoder():
    first, later = make(BatchFormerV2), make(BatchFormerV2, first=False)
    later.encoder = first.encoder
    doubled = first(TOKENS)
    again = later(doubled)
    assert torch.equal(again[:6], TOKENS)
    for place in range(3):
        torch.testing.assert_close(again[6:, place], encoded_by_hand(first.encoder, doubled[6:, place]))


@pytest.mark.parametrize("part", [BatchFormer, BatchFormerV2])
def test_autocast_does_not_reach_the_encoder(part):
    former = make(part).float()
    x = (X if part is BatchFormer else TOKENS).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside, half = former.encode(x), former.encode(x.bfloat16())
    assert torch.equal(inside, former.encode(x))
    assert half.dtype == torch.bfloat16


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of heads, .* got dim=10 and heads=4"):
        BatchFormer(10)
    with pytest.raises(ValueError, match="heads=0"):
        BatchFormerV2(8, 0)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        BatchFormer(8, hidden_dim=0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        BatchFormer(8, dropout=1.0)
    with pytest.raises(ValueError, match=r"tokens must be \[N, L, D\], .*got \(5, 8\)"):
        make(BatchFormerV2)(X)
    with pytest.raises(ValueError, match=r"an even N behind the first BatchFormerV2, got \(5, 3, 8\)"):
        make(BatchFormerV2, first=False)(TOKENS[:5])
