import pytest
import torch
from torch import nn

from leyden.models import DIN
from leyden.nn import Dice, LocalActivationPool

IDS = torch.tensor([[3, 1, 2, 0], [2, 2, 0, 0]])


def test_mean_pooling_by_hand():
    network = DIN(5, dim=4, hidden=(), pooling="mean")
    table = network.items.weight
    pooled = torch.stack([(table[1] + table[2]) / 2, table[2]])
    candidate = torch.stack([table[3], table[2]])
    torch.testing.assert_close(network.features(IDS), torch.cat([pooled, candidate, pooled * candidate], 1))
    assert network(IDS).shape == (2, 2)


def test_local_activation_sees_candidate_and_history():
    network = DIN(5, dim=4, hidden=()).eval()
    table = network.items.weight
    [pooled] = network.pool(table[3:4], table[IDS[:1, 1:]], torch.tensor([[True, True, False]]))
    torch.testing.assert_close(network.features(IDS)[0, :4], pooled)


@pytest.mark.parametrize("pooling", ["local_activation", "mean"])
def test_padding_is_irrelevant(pooling):
    network = DIN(5, pooling=pooling).eval()
    longer = torch.cat([IDS, torch.zeros(2, 3, dtype=torch.int64)], 1)
    torch.testing.assert_close(network(longer), network(IDS))
    assert network(torch.tensor([[1, 0, 0]])).isfinite().all()  # no history at all


def test_layers():
    kinds = [type(layer) for layer in DIN(5, activation="dice").body]
    assert kinds == [nn.Linear, Dice] * 2
    assert [type(layer) for layer in DIN(5, activation="prelu", hidden=(8,)).body] == [nn.Linear, nn.PReLU]
    assert isinstance(DIN(5).pool, LocalActivationPool)
    assert DIN(5, pooling="mean").pool is None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="pooling must be 'local_activation' or 'mean', got 'max'"):
        DIN(5, pooling="max")
    with pytest.raises(ValueError, match="activation must be 'dice' or 'prelu', got 'relu'"):
        DIN(5, activation="relu")
    with pytest.raises(ValueError, match="hidden must be 1 or more, got 0"):
        DIN(5, hidden=(8, 0))
    with pytest.raises(ValueError, match=r"x must hold a candidate and a history, \[N, 1 \+ T\], got shape \(2, 1\)"):
        DIN(5)(IDS[:, :1])
