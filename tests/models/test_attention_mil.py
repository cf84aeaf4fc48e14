import math

import pytest
import torch

from leyden.models import AttentionMIL

X = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.arange(5) < torch.tensor([[5], [2], [3]])


def network(**knobs):
    torch.manual_seed(0)
    return AttentionMIL(4, 2, hidden=6, attention_dim=3, **knobs).double()


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_equations_of_the_paper(gated):
    net = network(gated=gated).eval()
    weight, bias = net.embedding[0].weight, net.embedding[0].bias
    for bag, size in enumerate((5, 2, 3)):
        h = [(weight @ x.flatten() + bias).clamp(min=0.0) for x in X[bag, :size]]
        scores = []
        for h_k in h:
            hidden = torch.tanh(net.value.weight @ h_k)
            if gated:
                hidden = hidden / (1.0 + torch.exp(-(net.gate.weight @ h_k)))
            scores.append(math.exp(net.score.weight[0] @ hidden))
        expected = torch.tensor(scores, dtype=torch.float64) / sum(scores)
        features, attention = net.pool(net.embed(X), MASK)
        torch.testing.assert_close(attention[bag, :size], expected)
        assert not attention[bag, size:].any()
        torch.testing.assert_close(features[bag], sum(a * h_k for a, h_k in zip(expected, h, strict=True)))


def test_order_and_padding_do_not_matter():
    net, order = network().eval(), torch.tensor([3, 0, 4, 1, 2])
    features = net.features(X, MASK)
    torch.testing.assert_close(net.features(X[:, order], MASK[:, order]), features)
    torch.testing.assert_close(net.features(X.masked_fill(~MASK[..., None, None], 1e6), MASK), features)
    torch.testing.assert_close(net(X[1:2, :2]), net.head(features[1:2]))


def test_masked_instances_get_no_gradient():
    x = X.clone().requires_grad_()
    network().features(x, MASK).sum().backward()
    assert x.grad[MASK].any()
    assert not x.grad[~MASK].any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="attention_dim must be 1 or more, got 0"):
        AttentionMIL(4, 2, attention_dim=0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        AttentionMIL(4, 2, dropout=1.0)
