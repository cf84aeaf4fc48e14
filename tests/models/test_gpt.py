import math

import pytest
import torch

from leyden.models import GPT


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = GPT(13, 16, dim=12, depth=3, num_heads=2).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that the likeliest token is not always the last one
    return network


@pytest.fixture
def tokens():
    return torch.randint(0, 13, (4, 6), generator=torch.Generator().manual_seed(0))


def test_number_of_parameters_of_gpt2():
    with torch.device("meta"):
        network = GPT(50257, 1024, dim=768, depth=12, num_heads=12)
    assert sum(parameter.numel() for parameter in network.parameters()) == 124_439_808  # as published


def test_equals_transformers(network, tokens):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=13, n_positions=16, n_embd=12, n_layer=3, n_head=2)
    reference = transformers.GPT2LMHeadModel(config).double().eval()
    body = reference.transformer
    body.wte.weight.data = network.token_embedding.weight.data
    body.wpe.weight.data = network.position_embedding.weight.data
    reference.lm_head.weight = body.wte.weight
    body.ln_f.load_state_dict(network.norm.state_dict())
    for block, ours in zip(body.h, network.blocks, strict=True):
        block.ln_1.load_state_dict(ours.norm1.state_dict())
        block.ln_2.load_state_dict(ours.norm2.state_dict())
        projections = (ours.attention.q_proj, ours.attention.k_proj, ours.attention.v_proj)
        # their linear layers hold the transposed weight
        block.attn.c_attn.weight.data = torch.cat([layer.weight for layer in projections]).T.detach()
        block.attn.c_attn.bias.data = torch.cat([layer.bias for layer in projections]).detach()
        for theirs, layer in (
            (block.attn.c_proj, ours.attention.out_proj),
            (block.mlp.c_fc, ours.fc1),
            (block.mlp.c_proj, ours.fc2),
        ):
            theirs.weight.data, theirs.bias.data = layer.weight.T.detach(), layer.bias.detach()
    torch.testing.assert_close(network(tokens), reference(tokens).logits)


def test_head_is_tied_or_not():
    tied, untied = GPT(13, 8, dim=12), GPT(13, 8, dim=12, tie_weights=False)
    assert tied.head.weight is tied.token_embedding.weight
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (tied, untied)]
    assert sizes[1] - sizes[0] == 13 * 12


def test_weights_start_as_gpt2s():
    torch.manual_seed(0)
    network = GPT(300, 64, dim=64, depth=8, num_heads=4)
    for block in network.blocks:
        assert block.attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attention.out_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.fc1.bias.abs().max() == 0
    assert network.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.position_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_without_bias():
    names = [name for name, _ in GPT(13, 8, dim=12, bias=False).named_parameters()]
    assert all(name.endswith("weight") for name in names)


def test_later_tokens_do_not_change_earlier_outputs(network, tokens):
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 13
    before, after = network(tokens), network(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-12)
    assert (before[:, 3:] - after[:, 3:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("chunks", [(6,), (1, 1, 1, 1, 1, 1), (4, 1, 1), (2, 3, 1)])
@torch.no_grad()
def test_cached_logits_equal_uncached(network, tokens, chunks):
    cache = network.new_cache()
    pieces = [network.head(network.features(piece, cache)) for piece in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), network(tokens), rtol=0, atol=1e-10)


@torch.no_grad()
def test_greedy_equals_the_loop_without_cache(network, tokens):
    expected = tokens
    for _ in range(10):
        expected = torch.cat([expected, network(expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert len(expected[:, 6:].unique()) > 3  # not one token over and over
    assert torch.equal(network.generate(tokens, 10, temperature=0.0), expected)
    assert torch.equal(network.generate(tokens, 10, top_k=1), expected)
    assert torch.equal(network.generate(tokens, 0), tokens)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 4)])
@torch.no_grad()
def test_frequencies(network, tokens, temperature, top_k):
    logits = network(tokens[:1])[0, -1] / temperature
    if top_k is not None:
        logits[logits < logits.sort(descending=True).values[top_k - 1]] = -math.inf
    expected = logits.softmax(-1)
    generator = torch.Generator().manual_seed(0)
    options = {"temperature": temperature, "top_k": top_k, "generator": generator}
    drawn = network.generate(tokens[:1].expand(20000, -1), 1, **options)[:, -1]
    # 4 standard deviations of a frequency are at most 4 * sqrt(0.25 / 20000) = 0.0142
    torch.testing.assert_close(drawn.bincount(minlength=13) / 20000, expected.float(), rtol=0, atol=0.0142)
    assert drawn.bincount(minlength=13)[expected == 0].sum() == 0


def test_generator_makes_it_repeatable(network, tokens):
    state = torch.get_rng_state()
    first, second, other = (
        network.generate(tokens, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_longer_than_context_is_refused(network, tokens):
    assert network.generate(tokens, 10).shape == (4, 16)
    with pytest.raises(ValueError, match=r"may make 16 tokens \(context\), got 6 \+ 11"):
        network.generate(tokens, 11)
    with pytest.raises(ValueError, match=r"may have 16 tokens \(context\), got 17"):
        network(torch.zeros(1, 17, dtype=torch.int64))
    cache = network.new_cache()
    network.features(torch.zeros(1, 16, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match=r"may have 16 tokens \(context\), got 17"):
        network.features(torch.zeros(1, 1, dtype=torch.int64), cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or more, got -1"),
        ({"temperature": -0.5}, "temperature must be 0 or more, got -0.5"),
        ({"top_k": 14}, r"top_k must be from 1 to 13 \(vocab_size\), got 14"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.int64)}, r"tokens must have the shape \[N, T\] .* got \(2, 0\)"),
    ],
)
def test_bad_generate_arguments_are_refused(network, tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        network.generate(**({"tokens": tokens, "max_new_tokens": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be 1 or more, got 0"),
        ({"context": 0}, "context must be 1 or more, got 0"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"dim": 10}, "dim must be a multiple of num_heads, got dim=10 and num_heads=4"),
        ({"dropout": -1.0}, r"dropout must be in \[0, 1\), got -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT(**({"vocab_size": 13, "context": 8} | arguments))
