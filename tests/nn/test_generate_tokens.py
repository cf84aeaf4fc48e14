import pytest
import torch

from leyden.models import GPT, MLP
from leyden.nn import LogitEnsemble, generate_tokens

# models/test_gpt.py has the frequencies, and the likeliest tokens, of one network


def gpt(seed):
    torch.manual_seed(seed)
    network = GPT(5, 4, dim=8, depth=1, num_heads=2)
    with torch.no_grad():
        network.token_embedding.weight.mul_(30.0)  # far from uniform
    return network


def test_frequencies_of_an_ensemble():
    members = [gpt(0), gpt(1)]
    first = torch.tensor([[3]])
    drawn = generate_tokens(
        LogitEnsemble(members), first.expand(20000, -1), 1, generator=torch.Generator().manual_seed(0)
    )[:, 1]
    expected = torch.stack([member(first)[0, -1] for member in members]).mean(0).softmax(-1)
    assert expected.max() > 0.4
    # 4 standard deviations of a frequency are at most 4 * sqrt(0.25 / 20000) = 0.0142
    torch.testing.assert_close(drawn.bincount(minlength=5) / 20000, expected.detach(), rtol=0, atol=0.0142)


def test_one_token_more_than_the_context():
    network = gpt(0)
    tokens = generate_tokens(network, torch.tensor([[0], [1]]), 4, temperature=0.0)
    assert tokens.shape == (2, 5)
    assert torch.equal(network(tokens[:, :4]).argmax(-1), tokens[:, 1:])
    with pytest.raises(ValueError, match="may have 4 tokens"):
        generate_tokens(network, torch.tensor([[0]]), 5)


def test_needs_a_cache():
    with pytest.raises(ValueError, match="must have new_cache, and features that take a cache, got a MLP"):
        generate_tokens(MLP(4, 3), torch.zeros(1, 1, dtype=torch.int64), 1)
    with pytest.raises(AttributeError, match="new_cache"):
        generate_tokens(LogitEnsemble(MLP(4, 3)), torch.zeros(1, 1, dtype=torch.int64), 1)
