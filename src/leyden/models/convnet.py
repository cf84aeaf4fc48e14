"""A small convolutional network for small images."""

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive

__all__ = ["ConvNet"]


class ConvNet(Network):
    """Three 3x3 convolutions with batch norm and ReLU, halving the image twice, then the mean over all places.

    It takes images of any size from 4x4 on. D is ``4 * width``.

    Args:
        in_channels: channels of an image.
        num_classes: C.
        width: channels of the first convolution; the next two have 2 and 4 times as many.
        dropout: rate of dropout on the features.

    Raises:
        ValueError: a size below 1, or a rate outside [0, 1).
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, width=width)
        check_dropout(dropout)
        self.body = nn.Sequential(
            _conv_norm_relu(in_channels, width),
            nn.MaxPool2d(2),
            _conv_norm_relu(width, 2 * width),
            nn.MaxPool2d(2),
            _conv_norm_relu(2 * width, 4 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.feature_dim = 4 * width
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, H, W]`` to features ``[N, D]``."""
        return self.dropout(self.pool(self.body(x)).flatten(1))


def _conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    # no bias: batch norm subtracts it again
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
