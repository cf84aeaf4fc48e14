import pytest
import torch

from leyden.models import SelfTuningMLP

X = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
KEYS = torch.arange(64)


def network(**knobs):
    torch.manual_seed(0)
    return SelfTuningMLP(64, 10, (16, 16), **knobs)


def test_draws_only_by_keys():
    net = network().train()
    assert torch.equal(net(X), net(X))
    own = net.hyperparameters.h.unsqueeze(0)
    assert torch.equal(net.features(X), net.features(X, own))
    drawn = net.features(X, own, KEYS)
    assert not torch.allclose(drawn, net.features(X))
    torch.testing.assert_close(drawn[3:5], net.features(X[3:5], own, KEYS[3:5]))  # whatever the batch


def test_each_example_has_its_own_hyperparameters():
    net = network(input_noise=None)
    h = torch.full((64, 1), -20.0)  # a rate of 0
    torch.testing.assert_close(net.features(X, h, KEYS), net.features(X, h))
    h[0] = 20.0  # a rate of 0.9
    features = net.features(X, h, KEYS)
    torch.testing.assert_close(features[1:], net.features(X[1:], h[1:]))
    assert (features[0] == 0.0).sum() > 10

    noisy = network(dropout=None)
    quiet, loud = torch.tensor([[-20.0]]), torch.tensor([[3.0]])
    torch.testing.assert_close(noisy.features(X, quiet, KEYS), noisy.features(X, quiet))
    assert not torch.allclose(noisy.features(X, loud, KEYS), noisy.features(X, loud), atol=0.1)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="dropout must lie between 0.0 and 0.9"):
        network(dropout=0.95)
    with pytest.raises(ValueError, match="num_hidden must be 1 or more"):
        SelfTuningMLP(64, 10, ())
    with pytest.raises(ValueError, match="one hyperparameter or more"):
        network(dropout=None, input_noise=None)
