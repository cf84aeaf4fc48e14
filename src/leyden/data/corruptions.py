"""Corruptions of images in five severities, of the kinds of D. Hendrycks, T. Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", 2019, arXiv 1903.12261, in sizes for images of 8 x 8 pixels."""

import torch
from torch import Tensor, nn

from leyden.core.random import normal
from leyden.data.rotated_digits import rotated

__all__ = ["CORRUPTIONS", "corrupt"]

# what the numbers are: standard deviations of noise and of blur in pixels, what is left of the contrast, degrees, a sum
_SIZES = {
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "blur": (0.4, 0.6, 0.8, 1.0, 1.2),
    "contrast": (0.6, 0.45, 0.3, 0.2, 0.1),
    "rotation": (8.0, 16.0, 24.0, 32.0, 40.0),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
}
CORRUPTIONS = tuple(_SIZES)
_NOISE = 0xD0  # stream of random numbers


def corrupt(images: Tensor, keys: Tensor, *, corruption: str, severity: int) -> Tensor:
    """Corrupts images, each by a key of its own.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        keys: one key per image, int64 ``[N]``; see `leyden.core.random`. Only noise is drawn at random.
        corruption: one of `CORRUPTIONS`. Contrast is lost about an image's mean; it turns counterclockwise.
        severity: 1 to 5.

    Returns:
        Images in [0, 1].

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if corruption not in _SIZES:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
    if severity not in range(1, 6):
        raise ValueError(f"severity must lie in 1..5, got {severity}")
    size = _SIZES[corruption][severity - 1]
    if corruption == "noise":
        images = images + size * normal(keys, *images.shape[1:], stream=_NOISE)
    elif corruption == "blur":
        images = _blurred(images, size)
    elif corruption == "contrast":
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + size * (images - mean)
    elif corruption == "rotation":
        images = rotated(images, images.new_full((len(images),), size))
    else:
        images = images + size
    return images.clamp(0.0, 1.0)


def _blurred(images: Tensor, std: float) -> Tensor:
    """Weighs 5 x 5 pixels as a Gaussian does; the edge goes on outside."""
    weights = torch.exp(-torch.arange(-2.0, 3.0, dtype=images.dtype).square() / (2.0 * std**2))
    kernel = torch.outer(weights, weights) / weights.sum().square()
    channels = images.shape[1]
    padded = nn.functional.pad(images, [2, 2, 2, 2], mode="replicate")
    return nn.functional.conv2d(padded, kernel.expand(channels, 1, 5, 5), groups=channels)
