import copy

import pytest
import torch
from torch import nn

from leyden.models import MLP, ConvNet
from leyden.nn import ConcatenatedFeatures


@pytest.fixture
def members():
    torch.manual_seed(0)
    return [MLP(4, 3, (5,)).double(), MLP(4, 3, (2,)).double(), MLP(4, 3, (6,)).double()]


X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_starts_as_the_mean_of_the_members(members):
    joined = ConcatenatedFeatures(members)
    assert joined.feature_dim == 13
    assert torch.equal(joined.features(X), torch.cat([member.features(X) for member in members], 1))
    torch.testing.assert_close(joined(X), torch.stack([member(X) for member in members]).mean(0))


def test_one_member_is_the_network(members):
    assert torch.equal(ConcatenatedFeatures(members[0])(X), members[0](X))
    copies = ConcatenatedFeatures([members[1], copy.deepcopy(members[1])])
    torch.testing.assert_close(copies(X), members[1](X))


def test_order_of_the_members(members):
    a, b = members[0].features(X), members[2].features(X)
    there, back = ConcatenatedFeatures([members[0], members[2]]), ConcatenatedFeatures([members[2], members[0]])
    assert torch.equal(there.features(X), torch.cat([a, b], 1))
    assert torch.equal(back.features(X), torch.cat([b, a], 1))
    torch.testing.assert_close(there(X), back(X))


def test_frozen_members_learn_nothing_and_stay_in_eval_mode():
    torch.manual_seed(0)
    member = ConvNet(1, 10, width=2)
    joined = ConcatenatedFeatures([member, member], 4, batch_norm=True).train()
    before = copy.deepcopy(joined.members.state_dict())
    joined(torch.randn(8, 1, 8, 8)).square().sum().backward()
    assert joined.head.training
    assert not any(module.training for module in joined.members.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in joined.members.state_dict().items())
    assert {name for name, p in joined.named_parameters() if p.requires_grad} == {
        name for name, p in joined.named_parameters() if p.grad is not None
    }
    assert {name.split(".")[0] for name, p in joined.named_parameters() if p.grad is not None} == {"head"}


def test_members_that_are_not_frozen_learn(members):
    joined = ConcatenatedFeatures(members, 2, freeze=False).train()
    joined.double()(X).sum().backward()
    assert all(p.grad is not None for p in joined.parameters())
    assert all(module.training for module in joined.modules())
    assert all(p.grad is None for member in members for p in member.parameters())  # of which it has copies


def test_batch_norm_of_features(members):
    joined = ConcatenatedFeatures(members, 2, batch_norm=True).double().train()
    normalized = joined.head[0](joined.features(X))
    moving = joined.features(X).std(0) > 0.1  # a unit that is dead stays 0
    torch.testing.assert_close(normalized.mean(0), torch.zeros(13, dtype=torch.float64), atol=1e-6, rtol=0.0)
    ones = torch.ones(int(moving.sum()), dtype=torch.float64)
    torch.testing.assert_close(normalized[:, moving].std(0, correction=0), ones, atol=2e-2, rtol=0.0)


def test_bad_input(members):
    with pytest.raises(ValueError, match="networks must hold at least one network"):
        ConcatenatedFeatures([])
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConcatenatedFeatures(members, 0)
    with pytest.raises(ValueError, match="batch_norm needs a new head: give num_classes"):
        ConcatenatedFeatures(members, batch_norm=True)
    with pytest.raises(ValueError, match=r"heads\[1\] must be a weight \[3, D\]"):
        ConcatenatedFeatures([members[0], MLP(4, 2, (5,))])
    members[0].head = nn.Identity()
    with pytest.raises(ValueError, match="heads that are an nn.Linear, got a Identity"):
        ConcatenatedFeatures(members)
