import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from leyden.models import GPT, MLP, ConvNet
from leyden.nn import LogitEnsemble

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def members():
    torch.manual_seed(0)
    return [MLP(4, 3, (5,)).double(), MLP(4, 3, (2,)).double(), MLP(4, 3, (6,)).double()]


def test_mean_of_logits(members):
    ensemble = LogitEnsemble(members)
    a, b, c = (member(X) for member in members)
    torch.testing.assert_close(ensemble(X), (a + b + c) / 3)
    assert ensemble.feature_dim == 13
    assert torch.equal(ensemble.features(X), torch.cat([member.features(X) for member in members], 1))


def test_by_hand():
    first, second = MLP(1, 2, ()), MLP(1, 2, ())
    for network, weight in ((first, [[1.0], [0.0]]), (second, [[0.0], [3.0]])):
        network.load_state_dict({"head.weight": torch.tensor(weight), "head.bias": torch.zeros(2)})
    # logits (2, 0) and (0, 6): their mean is (1, 3), whereas the mean of probabilities would be near (0.44, 0.56)
    assert LogitEnsemble([first, second])(torch.tensor([[2.0]])).tolist() == [[1.0, 3.0]]


def test_heads_of_any_kind(members):
    members[1].head = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    torch.testing.assert_close(LogitEnsemble(members[:2])(X), (members[0](X) + members[1](X)) / 2)


def test_one_member_and_equal_members(members):
    assert torch.equal(LogitEnsemble(members[0])(X), members[0](X))
    torch.testing.assert_close(LogitEnsemble([members[0]] * 3)(X), members[0](X))


def test_log_loss_is_at_most_the_mean_of_the_members(members):
    target = torch.arange(7) % 3
    losses = torch.stack([functional.cross_entropy(member(X), target, reduction="none") for member in members])
    of_ensemble = functional.cross_entropy(LogitEnsemble(members)(X), target, reduction="none")
    assert (of_ensemble < losses.mean(0)).all()  # Jensen


def test_frozen_and_always_in_eval_mode():
    torch.manual_seed(0)
    member = ConvNet(1, 10, width=2)
    ensemble = LogitEnsemble([member, member]).train()
    before = copy.deepcopy(ensemble.state_dict())
    assert not any(module.training for module in ensemble.modules())
    assert not any(p.requires_grad for p in ensemble.parameters())
    ensemble(torch.randn(8, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ensemble.state_dict().items())
    assert member.training, "which is copied"
    assert all(p.requires_grad for p in member.parameters())


def test_tokens_with_a_cache():
    torch.manual_seed(0)
    ensemble = LogitEnsemble([GPT(11, 6, dim=8, depth=1, num_heads=2), GPT(11, 6, dim=4, depth=2, num_heads=1)])
    tokens = torch.randint(11, (3, 6))
    cache = ensemble.new_cache()
    pieces = [ensemble.features(piece, cache) for piece in tokens.split([2, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), ensemble.features(tokens))


def test_no_member():
    with pytest.raises(ValueError, match="networks must hold at least one network"):
        LogitEnsemble([])
