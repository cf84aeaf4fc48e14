"""Residual networks for small images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stem that
is usual for 32x32 images: one 3x3 convolution of stride 1 and no max-pooling. As is standard since, the bottleneck
strides in its 3x3 convolution, and the last batch norm of each block starts at zero (P. Goyal et al., "Accurate, Large
Minibatch SGD", 2017, section 5.1), so that each block starts as its shortcut.
"""

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive

__all__ = ["ResNet"]


class ResNet(Network):
    """ResNet-18, -34 or -50 with the stem for small images.

    Args:
        depth: 18 or 34 (basic blocks), or 50 (bottleneck blocks).
        num_classes: C.
        in_channels: channels of an image.
        width: channels of the first stage; each further stage has twice as many. D is ``8 * width``, in depth 50
            ``32 * width``.

    Raises:
        ValueError: another depth, or a size below 1.
    """

    def __init__(self, depth: int = 18, num_classes: int = 10, *, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"depth must be one of {sorted(_STAGES)}, got {depth}")
        check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
        block, num_blocks = _STAGES[depth]
        self.conv1 = _conv(in_channels, width, kernel_size=3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(block, width, width, num_blocks[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, num_blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, num_blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, num_blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = 8 * width * block.expansion
        self.head = nn.Linear(self.feature_dim, num_classes)
        self._init_weights()

    def features(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, H, W]`` to features ``[N, D]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, _Bottleneck):
                nn.init.zeros_(module.bn3.weight)


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, kernel_size=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel_size=3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel_size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels * self.expansion, kernel_size=1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu(residual + self.shortcut(x))


_Block = type[_BasicBlock] | type[_Bottleneck]

_STAGES: dict[int, tuple[_Block, tuple[int, int, int, int]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}


def _stage(block: _Block, in_channels: int, channels: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(num_blocks - 1)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, kernel_size=1, stride=stride), nn.BatchNorm2d(out_channels))


def _conv(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
