"""A small U-Net for noisy images (O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", 2015, arXiv 1505.04597), told the time as diffusion models are (P. Dhariwal, A. Nichol, "Diffusion
Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.models._checks import check_dropout, check_positive

__all__ = ["UNet"]


class UNet(nn.Module):
    """Residual blocks at ever lower resolution and back, with a connection across at every level; no attention.

    It begins as the zero function. Images may be of any size that can be halved as often as there are levels.

    Args:
        in_channels: channels of an image, and of the output.
        width: channels of the first level.
        multipliers: channels of each level, as multiples of ``width``.
        num_blocks: residual blocks of a level, on each way.
        dropout: rate of dropout in the blocks.

    Raises:
        ValueError: a size below 1, no level, or a rate outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, width=width, num_blocks=num_blocks)
        check_dropout(dropout)
        if min(multipliers, default=0) < 1:
            raise ValueError(f"multipliers must hold one or more numbers of 1 or more, got {tuple(multipliers)}")
        sizes = [width * multiplier for multiplier in multipliers]
        time_dim = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(2 * width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim), nn.SiLU())
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for before, size in zip([width, *sizes], sizes, strict=False):
            inputs = [before, *[size] * (num_blocks - 1)]
            self.down.append(nn.ModuleList(_Block(number, size, time_dim, dropout) for number in inputs))
        self.middle = _Block(sizes[-1], sizes[-1], time_dim, dropout)
        for before, size in zip([sizes[-1], *sizes[::-1]], sizes[::-1], strict=False):
            inputs = [before + size, *[size] * (num_blocks - 1)]
            self.up.append(nn.ModuleList(_Block(number, size, time_dim, dropout) for number in inputs))
        self.out = nn.Sequential(_norm(width), nn.SiLU(), _zero(nn.Conv2d(sizes[0], in_channels, 3, padding=1)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps images ``[N, C, H, W]`` and their times ``[N]`` to ``[N, C, H, W]``.

        Raises:
            ValueError: the images cannot be halved so often.
        """
        least = 2 ** (len(self.down) - 1)
        if x.shape[-1] % least or x.shape[-2] % least:
            raise ValueError(
                f"images of a UNet with {len(self.down)} levels must have sides that {least} divides, got "
                f"{tuple(x.shape[-2:])}"
            )
        embedding = self.time(_encode(time, 2 * self.width).to(self.stem.weight.dtype))
        x = self.stem(x)
        across = []
        for level, blocks in enumerate(self.down):
            x = functional.avg_pool2d(x, 2) if level else x
            for block in cast(nn.ModuleList, blocks):
                x = block(x, embedding)
            across.append(x)
        x = self.middle(x, embedding)
        for level, blocks in enumerate(self.up):
            x = functional.interpolate(x, scale_factor=2.0) if level else x
            x = torch.cat([x, across.pop()], 1)
            for block in cast(nn.ModuleList, blocks):
                x = block(x, embedding)
        return self.out(x)


class _Block(nn.Module):
    """Two convolutions; the time scales and shifts between them."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.norm = _norm(out_channels)
        self.second = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        )
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.time(embedding)[..., None, None].chunk(2, 1)  # [N, C, 1, 1]
        return self.skip(x) + self.second(self.norm(self.first(x)) * (1.0 + scale) + shift)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _encode(time: Tensor, dim: int) -> Tensor:
    """Cosines and sines of the time with wavelengths from 2 pi to 20,000 pi, ``[N, dim]``."""
    rates = torch.exp(torch.linspace(0.0, -math.log(10_000.0), dim // 2, device=time.device, dtype=time.dtype))
    angles = time[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)
