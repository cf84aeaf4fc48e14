"""Masks that are learned, one per training image (C. Li et al., "Robust Neural Rendering in the Wild with Asymmetric
Dual 3D Gaussian Splatting", 2025, arXiv 2506.03538; authors' code: steveli88/AsymGS)."""

import torch
from torch import Tensor, nn

__all__ = ["SoftMasks"]


class SoftMasks(nn.Module):
    """``sigmoid(sharpness * logit)`` of a logit per pixel, which is 0 at first; 1 in the authors' code.

    Args:
        num_images: S.
        height: H, of all images.
        width: W.
        sharpness: how fast a mask becomes hard.

    Raises:
        ValueError: a size is below 1, or ``sharpness`` is not positive.
    """

    def __init__(self, num_images: int, height: int, width: int, *, sharpness: float = 8.0) -> None:
        super().__init__()
        for name, size in (("num_images", num_images), ("height", height), ("width", width)):
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        if not sharpness > 0.0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        self.sharpness = sharpness
        self.logits = nn.Parameter(torch.zeros(num_images, 1, height, width))

    def __len__(self) -> int:
        """Number of masks."""
        return len(self.logits)

    def forward(self, index: Tensor) -> Tensor:
        """Returns the masks ``[N, 1, H, W]`` of images, int64 ``[N]``."""
        return torch.sigmoid(self.sharpness * self.logits[index])
