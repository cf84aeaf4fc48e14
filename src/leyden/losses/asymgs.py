"""Losses and masks for fits to images with distractors (C. Li, Z. Shi, Y. Lu, W. He, X. Xu, "Robust Neural Rendering in
the Wild with Asymmetric Dual 3D Gaussian Splatting", 2025, arXiv 2506.03538; authors' code: steveli88/AsymGS)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MaskedL1SSIMLoss", "SoftMaskLoss", "masked_l1_ssim_loss", "segment_residual_mask", "soft_mask_loss"]

_RADIUS, _SIGMA = 5, 1.5  # of the windows of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # its constants


def masked_l1_ssim_loss(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, *, ssim_weight: float = 0.2
) -> Tensor:
    """``(1 - w) mean |pred - target| + w (1 - SSIM)``, whose gradient is scaled by a mask; its value is not.

    SSIM has Gaussian windows of 11 x 11 pixels with zeros around the images.

    Args:
        pred: images ``[N, C, H, W]`` in [0, 1]; computed with in float32 at least.
        target: the same shape.
        mask: ``[N, 1, H, W]``, 1 where the gradient is whole and 0 where there is none; all 1 if None. It gets none.
        ssim_weight: w.

    Raises:
        ValueError: the shapes do not fit, or ``ssim_weight`` lies outside of [0, 1].
    """
    if pred.ndim != 4 or pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have one shape [N, C, H, W], got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if mask is not None and mask.shape != (len(pred), 1, *pred.shape[2:]):
        raise ValueError(f"mask must have shape {(len(pred), 1, *pred.shape[2:])}, got {tuple(mask.shape)}")
    if not 0.0 <= ssim_weight <= 1.0:
        raise ValueError(f"ssim_weight must lie in [0, 1], got {ssim_weight}")
    pred, target = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (pred, target))
    if mask is not None:
        mask = mask.detach().to(pred.dtype)  # its gradient would be 0
        pred = pred * mask + (1.0 - mask) * pred.detach()
    return (1.0 - ssim_weight) * (pred - target).abs().mean() + ssim_weight * (1.0 - _ssim(pred, target))


class MaskedL1SSIMLoss(nn.Module):
    """Module twin of `masked_l1_ssim_loss`."""

    def __init__(self, *, ssim_weight: float = 0.2) -> None:
        super().__init__()
        self.ssim_weight = ssim_weight

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the loss."""
        return masked_l1_ssim_loss(pred, target, mask, ssim_weight=self.ssim_weight)


@torch.no_grad()
def segment_residual_mask(residuals: Tensor, segments: Tensor, *, quantiles: Sequence[float] = (0.95, 0.9)) -> Tensor:
    """Trusts an image but for those segments in which large residuals are denser than in all of it.

    A pixel's residuals are large if each exceeds the quantile of its own map.

    Args:
        residuals: R maps of an image, ``[..., R, H, W]``: in the paper the mean absolute difference of colors, and one
            minus the cosine of features.
        segments: which pixels are in them, bool ``[..., S, H, W]``.
        quantiles: one per map; of more, the first R. The authors' code has 0.9 for both where there are two networks.

    Returns:
        ``[..., H, W]``, of the dtype of ``residuals``: 1 where the image is trusted, else 0.

    Raises:
        ValueError: the shapes do not fit, there are fewer quantiles than maps, or one lies outside of [0, 1].
    """
    places = *residuals.shape[:-3], *residuals.shape[-2:]
    if residuals.ndim < 3 or places != (*segments.shape[:-3], *segments.shape[-2:]):
        raise ValueError(
            f"residuals and segments must have shapes [..., R, H, W] and [..., S, H, W], got {tuple(residuals.shape)} "
            f"and {tuple(segments.shape)}"
        )
    if len(quantiles) < residuals.shape[-3] or not all(0.0 <= q <= 1.0 for q in quantiles):
        raise ValueError(
            f"quantiles must be {residuals.shape[-3]} or more numbers in [0, 1], one per map, got {list(quantiles)}"
        )
    maps = residuals.flatten(-2).to(torch.promote_types(residuals.dtype, torch.float32)).unbind(-2)  # R of [..., HW]
    large = torch.stack([x > x.quantile(q, -1, keepdim=True) for x, q in zip(maps, quantiles, strict=False)]).all(0)
    members = segments.flatten(-2).to(maps[0].dtype)  # [..., S, HW]
    share = large.to(members.dtype)
    with torch.autocast(residuals.device.type, enabled=False):  # 16 bits do not count pixels exactly
        density = (members @ share.unsqueeze(-1)).squeeze(-1) / members.sum(-1).clamp(min=1.0)  # [..., S]
    distrusted = density > share.mean(-1, keepdim=True)
    return (~(segments & distrusted[..., None, None]).any(-3)).to(residuals.dtype)


def soft_mask_loss(mask: Tensor, residual: Tensor) -> Tensor:
    """``mean |mask - (1 - r)|``, where r is the residual brought to [0, 1] between its extremes in each image.

    Args:
        mask: what is learned, ``[N, 1, H, W]`` in [0, 1].
        residual: the same shape; gets no gradient.

    Raises:
        ValueError: the shapes differ.
    """
    if mask.ndim != 4 or mask.shape != residual.shape:
        raise ValueError(
            f"mask and residual must have one shape [N, 1, H, W], got {tuple(mask.shape)} and {tuple(residual.shape)}"
        )
    residual = residual.detach().to(torch.promote_types(residual.dtype, torch.float32))
    low, high = residual.amin((1, 2, 3), keepdim=True), residual.amax((1, 2, 3), keepdim=True)
    return (mask - 1.0 + ((residual - low) / (high - low + 1e-8)).clamp(0.0, 1.0)).abs().mean()


class SoftMaskLoss(nn.Module):
    """Module twin of `soft_mask_loss`."""

    def forward(self, mask: Tensor, residual: Tensor) -> Tensor:
        """Returns the loss."""
        return soft_mask_loss(mask, residual)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = (_blurring(size, x) for size in x.shape[-2:])

    def blur(images: Tensor) -> Tensor:
        return rows @ images @ columns  # both are symmetric

    with torch.autocast(x.device.type, enabled=False):
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
        covariance = blur(x * y) - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * (2.0 * covariance + _C2) / (var_x + var_y + _C2)).mean()


def _blurring(size: int, like: Tensor) -> Tensor:
    """The window at each place as a row of a matrix: up to 1000 pixels as fast as a convolution of single channels."""
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    distance = places.unsqueeze(1) - places
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=like.dtype, device=like.device)
    window = torch.exp(-distance.square() / (2.0 * _SIGMA**2)) * (distance.abs() <= _RADIUS)
    return window / torch.exp(-offsets.square() / (2.0 * _SIGMA**2)).sum()
