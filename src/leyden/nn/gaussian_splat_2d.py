"""An image as a sum of Gaussians (X. Zhang et al., "GaussianImage: 1000 FPS Image Representation and Compression by 2D
Gaussian Splatting", 2024, arXiv 2403.08551): splatting without cameras, to try what is made for scenes."""

import math

import torch
from torch import Tensor, nn

from leyden.core.network import Network

__all__ = ["GaussianSplat2d"]

SHRINKAGE = 1.6  # of widths, where a Gaussian is split; as in 3D Gaussian splatting (arXiv 2308.04079, section 5.2)


class GaussianSplat2d(Network):
    """One color image as a sum of Gaussians, each with a place, two widths, an angle and a color.

    Its output is that image, ``[N, 3, H, W]``, for each of N inputs, whatever they are. It is made of all Gaussians at
    every pixel: for small images.

    Args:
        num_gaussians: how many, G; their places are random at first.
        height: H, in pixels.
        width: W.

    Raises:
        ValueError: a size is below 1.
    """

    monomials: Tensor

    def __init__(self, num_gaussians: int, height: int, width: int) -> None:
        super().__init__()
        for name, size in (("num_gaussians", num_gaussians), ("height", height), ("width", width)):
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        extent = torch.tensor([height, width])
        self.place = nn.Parameter((torch.rand(num_gaussians, 2) - 0.5) * extent)  # row and column from the middle
        spread = math.sqrt(height * width / num_gaussians)  # of neighbours, in pixels
        self.log_width = nn.Parameter(torch.full((num_gaussians, 2), math.log(0.5 * spread)))  # down, across
        self.angle = nn.Parameter(math.pi * torch.rand(num_gaussians))
        self.color = nn.Parameter(0.5 * torch.rand(num_gaussians, 3))
        row, column = (torch.arange(length) - 0.5 * (length - 1) for length in (height, width))
        row, column = (x.flatten() for x in torch.meshgrid(row, column, indexing="ij"))
        monomials = torch.stack([row * row, row * column, column * column, row, column, torch.ones_like(row)])
        self.register_buffer("monomials", monomials, persistent=False)  # [6, HW]
        self.feature_dim = 3 * height * width
        self.head = nn.Unflatten(1, (3, height, width))

    def features(self, x: Tensor) -> Tensor:
        """Returns the pixels of the image, ``[N, 3 H W]``."""
        sine, cosine = self.angle.sin(), self.angle.cos()
        p, q = (-0.5 * torch.exp(-2.0 * self.log_width)).unbind(1)
        a = p * cosine.square() + q * sine.square()
        b = 2.0 * (p - q) * sine * cosine
        c = p * sine.square() + q * cosine.square()
        y, z = self.place.unbind(1)
        # the exponent a (r - y)^2 + b (r - y)(s - z) + c (s - z)^2 as a polynomial of row r and column s
        linear = -2.0 * a * y - b * z, -2.0 * c * z - b * y
        constant = a * y.square() + b * y * z + c * z.square()
        with torch.autocast(x.device.type, enabled=False):  # exponents are small differences of large numbers
            weight = torch.exp(torch.stack([a, b, c, *linear, constant], 1) @ self.monomials)  # [G, HW]
            return (self.color.T @ weight).flatten().expand(len(x), -1)

    @torch.no_grad()
    def prune_(self, keep: Tensor) -> None:
        """Leaves out Gaussians; not to be called within a fit, whose optimizer holds the old parameters.

        Args:
            keep: which are kept, bool ``[G]``.

        Raises:
            ValueError: another shape or dtype, or none is kept.
        """
        if keep.shape != self.angle.shape or keep.dtype != torch.bool or not keep.any():
            raise ValueError(
                f"keep must be bool [{len(self.angle)}] and keep one or more, got {keep.dtype} {list(keep.shape)} with "
                f"{int(keep.sum())} that are not 0"
            )
        for name, p in self.named_parameters():
            setattr(self, name, nn.Parameter(p[keep]))

    @torch.no_grad()
    def densify_(self, parents: Tensor) -> None:
        """Splits Gaussians along their longer axis; not to be called within a fit, whose optimizer holds the old ones.

        A child is added behind all others, and parent and child move apart by half a width each to either side; the
        widths of both shrink to 1 / 1.6. The split is deterministic: in 3D Gaussian splatting places are drawn.

        Args:
            parents: which are split, int64 ``[K]``, none twice.

        Raises:
            ValueError: a number is out of range or there twice.
        """
        count = len(self.angle)
        if parents.ndim != 1 or len(parents.unique()) != len(parents) or not ((parents >= 0) & (parents < count)).all():
            raise ValueError(f"parents must be different numbers in 0..{count - 1}, got {parents.tolist()}")
        width, longer = self.log_width[parents].max(1)
        angle = self.angle[parents] + longer * (0.5 * math.pi)
        shift = 0.5 * width.exp().unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)  # [K, 2]
        self.log_width[parents] -= math.log(SHRINKAGE)
        self.place[parents] += shift
        children = {name: p[parents] for name, p in self.named_parameters()}
        children["place"] -= 2.0 * shift
        for name, p in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(torch.cat([p, children[name]])))
