"""A recurrent network for images."""

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive
from leyden.nn.layer_norm_lstm import LayerNormLSTM

__all__ = ["RowLSTM"]


class RowLSTM(Network):
    """Reads an image row by row, from the top; the features are the state after the last row.

    Args:
        in_channels: channels of an image.
        image_size: width of an image; it may have any height.
        num_classes: C.
        hidden_size: D.
        num_layers: layers of the LSTM.
        layer_norm: whether it is a `leyden.nn.LayerNormLSTM`, not `torch.nn.LSTM`.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        num_classes: int = 10,
        *,
        hidden_size: int = 64,
        num_layers: int = 1,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        check_positive(hidden_size=hidden_size, num_layers=num_layers)
        kind = LayerNormLSTM if layer_norm else nn.LSTM
        self.lstm = kind(in_channels * image_size, hidden_size, num_layers, batch_first=True)
        self.feature_dim = hidden_size
        self.head = nn.Linear(hidden_size, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, H, image_size]`` to features ``[N, D]``."""
        outputs, _ = self.lstm(x.transpose(1, 2).flatten(2))
        return outputs[:, -1]
