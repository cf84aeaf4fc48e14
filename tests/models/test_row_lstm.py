"""Images read row by row."""

import pytest
import torch
from torch import nn

from leyden.models import RowLSTM
from leyden.nn import LayerNormLSTM


@pytest.mark.parametrize("layer_norm", [False, True])
def test_rows_are_read_from_the_top(layer_norm):
    network, x = RowLSTM(2, 4, 3, hidden_size=5, layer_norm=layer_norm), torch.rand(6, 2, 7, 4)
    assert isinstance(network.lstm, LayerNormLSTM if layer_norm else nn.LSTM)
    rows = torch.cat([x[:, 0], x[:, 1]], dim=-1)  # [N, H, 8]
    _, (h, _) = network.lstm(rows)
    torch.testing.assert_close(network.features(x), h[0])
    assert network(x).shape == (6, 3)


def test_errors():
    with pytest.raises(ValueError, match="hidden_size"):
        RowLSTM(hidden_size=0)
