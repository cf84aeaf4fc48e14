"""Augmentation of images; all samples of a batch at once, in plain PyTorch."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from leyden.core.batch import Batch
from leyden.core.random import normal, uniform
from leyden.data.augment import Augment

__all__ = [
    "ColorJitter",
    "Cutout",
    "GaussianNoise",
    "HorizontalFlip",
    "ImageAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomResizedCrop",
]


class ImageAugment(Augment):
    """Changes the images ``batch["input"]``."""

    def __call__(self, batch: Batch, keys: Tensor) -> Batch:
        """Returns a new batch.

        Raises:
            ValueError: ``input`` is not ``[N, C, H, W]``.
        """
        if batch["input"].ndim != 4:
            raise ValueError(
                f"{type(self).__name__} needs images [N, C, H, W], got input of shape {tuple(batch['input'].shape)}"
            )
        return {**batch, "input": self.transform(batch["input"], keys)}

    @abstractmethod
    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images.

        Args:
            images: floating point ``[N, C, H, W]``.
            keys: one key per sample, int64 ``[N]``.
        """


class RandomCrop(ImageAugment):
    """Pads all sides, then cuts out a window of the old size at a random place.

    Args:
        padding: pixels on each side.
        padding_mode: ``"constant"`` (0: the mean, where pixels are normalised), ``"reflect"`` or ``"replicate"``.

    Raises:
        ValueError: ``padding`` is below 1, or there is no such mode.
    """

    def __init__(self, padding: int, *, padding_mode: str = "constant") -> None:
        if padding < 1:
            raise ValueError(f"padding must be at least 1, got {padding}")
        if padding_mode not in ("constant", "reflect", "replicate"):
            raise ValueError(f"padding_mode must be 'constant', 'reflect' or 'replicate', got {padding_mode!r}")
        self.padding = padding
        self.padding_mode = padding_mode

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, [self.padding] * 4, mode=self.padding_mode)
        top, left = (uniform(keys, 2) * (2 * self.padding + 1)).to(torch.int64).unsqueeze(-1).unbind(1)  # [N, 1] each
        rows = top + torch.arange(height, device=images.device)  # [N, H]
        columns = left + torch.arange(width, device=images.device)  # [N, W]
        samples = torch.arange(len(images), device=images.device)
        channels = torch.arange(images.shape[1], device=images.device)
        return padded[
            samples[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


class HorizontalFlip(ImageAugment):
    """Mirrors left and right.

    Args:
        p: probability.

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        self.p = p

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        flipped = uniform(keys, 1, 1, 1) < self.p
        return torch.where(flipped, images.flip(-1), images)


class RandomAffine(ImageAugment):
    """Scales and rotates about the middle, then moves; bilinear, 0 outside.

    Args:
        degrees: the angle is drawn from ``[-degrees, degrees]``.
        translate: the moves are drawn from ``[-translate, translate]``, as shares of width and height.
        scale: the factor is drawn from this range.

    Raises:
        ValueError: a range is negative or empty.
    """

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        if degrees < 0.0 or translate < 0.0:
            raise ValueError(f"degrees and translate must be at least 0, got {degrees} and {translate}")
        if not 0.0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of positive numbers, got {scale}")
        self.degrees = degrees
        self.translate = translate
        self.scale = scale

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        height, width = images.shape[-2:]
        draws = uniform(keys, 4)  # [N, 4]
        angle = math.radians(self.degrees) * (2.0 * draws[:, 0] - 1.0)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, 1]
        move = 2.0 * self.translate * (2.0 * draws[:, 2:] - 1.0)  # [N, 2]; an axis goes from -1 to 1
        cos, sin = angle.cos() / factor, angle.sin() / factor
        # from the place of a new pixel to that of the old one; the axes have different units unless the image is square
        inverse = torch.stack([cos, sin * (height / width), -sin * (width / height), cos], -1).view(-1, 2, 2)
        theta = torch.cat([inverse, -inverse @ move.unsqueeze(-1)], -1)  # [N, 2, 3]
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        return _grid_sample(images, grid)


class RandomResizedCrop(ImageAugment):
    """Cuts out a window of random size and place, and makes it as large as the image was; bilinear.

    Args:
        scale: share of the image's area, drawn from this range.
        ratio: width of the window by its height, its logarithm drawn evenly; a side never exceeds that of the image.

    Raises:
        ValueError: a range is empty, or not positive, or ``scale`` exceeds 1.
    """

    def __init__(self, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        if not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise ValueError(f"scale must be a range in (0, 1], got {scale}")
        if not 0.0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be a range of positive numbers, got {ratio}")
        self.scale = scale
        self.ratio = ratio

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        height, width = images.shape[-2:]
        draws = uniform(keys, 4)  # [N, 4]
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, 0]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * draws[:, 1]).exp() * (height / width)
        size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1.0)  # [N, 2], of 1
        middle = (1.0 - size) * (2.0 * draws[:, 2:] - 1.0)  # an axis goes from -1 to 1
        theta = torch.cat([size.diag_embed(), middle.unsqueeze(-1)], -1)  # [N, 2, 3]
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        # the middles of the outer new pixels may lie beyond those of the outer old ones
        return _grid_sample(images, grid, padding_mode="border")


class ColorJitter(ImageAugment):
    """Brightness, then contrast, then saturation by random factors, each from ``[max(0, 1 - x), 1 + x]``.

    Brightness blends with black, contrast with the mean grey of the image, saturation with the grey image; the results
    are clamped to [0, 1].

    Args:
        brightness: range of the factor.
        contrast: range of the factor.
        saturation: range of the factor; needs three channels.
        mean: what was subtracted from the pixels in [0, 1], one number or one per channel: undone before, redone after.
        std: what the pixels were then divided by.

    Raises:
        ValueError: a range is negative.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        *,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        if min(brightness, contrast, saturation) < 0.0:
            raise ValueError(
                f"brightness, contrast and saturation must be at least 0, got {brightness}, {contrast}, {saturation}"
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.mean = mean
        self.std = std

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images.

        Raises:
            ValueError: the images have neither one nor three channels, or saturation is asked for with one.
        """
        mean, std = (images.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        draws = uniform(keys, 3, 1, 1, 1).to(images.dtype)  # [N, 3, 1, 1, 1]
        pixels = images * std + mean
        if self.brightness:
            pixels = _blend(pixels, torch.zeros_like(pixels), self.brightness, draws[:, 0])
        if self.contrast:
            pixels = _blend(pixels, _grey(pixels).mean((-2, -1), keepdim=True), self.contrast, draws[:, 1])
        if self.saturation:
            if pixels.shape[1] != 3:
                raise ValueError(f"saturation must be 0 for images that have {pixels.shape[1]} channels, not 3")
            pixels = _blend(pixels, _grey(pixels), self.saturation, draws[:, 2])
        return (pixels - mean) / std


class Cutout(ImageAugment):
    """Sets a square to 0; its middle is any pixel, so that a part of it may lie outside.

    T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017, section 3.2.

    Args:
        size: side in pixels.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        height, width = images.shape[-2:]
        draws = uniform(keys, 2)
        hidden = []
        for length, draw in ((height, draws[:, 0]), (width, draws[:, 1])):
            first = (draw * length).to(torch.int64).unsqueeze(-1) - self.size // 2  # [N, 1]
            places = torch.arange(length, device=images.device)
            hidden.append((places >= first) & (places < first + self.size))  # [N, length]
        square = hidden[0][:, None, :, None] & hidden[1][:, None, None, :]  # [N, 1, H, W]
        return images.masked_fill(square, 0.0)


class GaussianNoise(ImageAugment):
    """Adds independent normal noise to every pixel.

    Args:
        std: standard deviation.

    Raises:
        ValueError: ``std`` is negative.
    """

    def __init__(self, std: float) -> None:
        if std < 0.0:
            raise ValueError(f"std must be at least 0, got {std}")
        self.std = std

    def transform(self, images: Tensor, keys: Tensor) -> Tensor:
        """Returns new images."""
        return images + self.std * normal(keys, *images.shape[1:]).to(images.dtype)


def _grid_sample(images: Tensor, grid: Tensor, *, padding_mode: str = "zeros") -> Tensor:
    dtype = torch.promote_types(images.dtype, torch.float32)  # in half precision, places would be off by whole pixels
    sampled = nn.functional.grid_sample(
        images.to(dtype), grid.to(dtype), padding_mode=padding_mode, align_corners=False
    )
    return sampled.to(images.dtype)


def _blend(pixels: Tensor, other: Tensor, strength: float, draw: Tensor) -> Tensor:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    factor = low + (high - low) * draw
    return (factor * pixels + (1.0 - factor) * other).clamp(0.0, 1.0)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    if pixels.shape[1] != 3:
        raise ValueError(f"contrast and saturation need one or three channels, got {pixels.shape[1]}")
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # luma of ITU-R BT.601
    return (weights * pixels).sum(1, keepdim=True)
