"""Proximal matching (Z. Fang, S. Buchanan, J. Sulam, "What's in a Prior? Learned Proximal Networks for Inverse
Problems", 2023, arXiv 2310.14344, section 3.2; authors' code: ZhenghanFang/learned-proximal-networks).

A denoiser with the least squared error gives the mean of what may lie behind a noisy input; the least proximal matching
loss gives, as its width goes to 0, the most probable one: the proximal operator of the data's negative log density.
"""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["ProximalMatching", "proximal_matching_gamma", "proximal_matching_loss", "proximal_prior"]


def proximal_matching_loss(prediction: Tensor, target: Tensor, *, gamma: float, reduction: str = "mean") -> Tensor:
    """``1 - exp(-||prediction - target||^2 / gamma^2)``: all that is far off costs the same.

    Args:
        prediction: denoised inputs, ``[N, ...]``.
        target: what they should be, ``[N, ...]``.
        gamma: width; where the distance is a few times larger, the gradient vanishes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, ``gamma`` is not positive, or another ``reduction``.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"target must have the shape of prediction, {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    if not gamma > 0.0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    error = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - target
    return reduce_loss(-torch.expm1(-error.flatten(1).square().sum(-1) / gamma**2), reduction)


def proximal_matching_gamma(step: int, *, gamma_min: float, stages: int = 4, total_steps: int) -> float:
    """Width of a training step: halved from one stage to the next, ``gamma_min`` in the last.

    Args:
        step: counted from 0.
        gamma_min: the last width.
        stages: number of widths.
        total_steps: steps of all stages, which are equally long; the last has what is left over.

    Raises:
        ValueError: there are fewer steps than stages, or another argument is out of range.
    """
    if not gamma_min > 0.0:
        raise ValueError(f"gamma_min must be positive, got {gamma_min}")
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")
    if total_steps < stages:
        raise ValueError(f"total_steps must be at least the number of stages, {stages}, got {total_steps}")
    stage = min(step // (total_steps // stages), stages - 1)
    return gamma_min * 2.0 ** (stages - 1 - stage)


def proximal_prior(y: Tensor, fy: Tensor, potential: Tensor) -> Tensor:
    """The function whose proximal operator f is, at ``f(y)``: ``<y, f(y)> - ||f(y)||^2 / 2 - psi(y)``.

    Its value at a given x takes the y with ``f(y) = x``, which minimises ``psi(y) - <x, y>``.

    Args:
        y: inputs, ``[N, ...]``.
        fy: what f makes of them, ``[N, ...]``.
        potential: ``psi(y)``, whose gradient f is, ``[N]``.

    Returns:
        ``[N]``.

    Raises:
        ValueError: the shapes do not fit.
    """
    if y.shape != fy.shape or potential.shape != y.shape[:1]:
        raise ValueError(
            f"y and fy must have one shape [N, ...] and potential the shape [N], got {tuple(y.shape)}, "
            f"{tuple(fy.shape)} and {tuple(potential.shape)}"
        )
    y, fy = y.flatten(1), fy.flatten(1)
    return (y * fy).sum(-1) - 0.5 * fy.square().sum(-1) - potential


class ProximalMatching(nn.Module):
    """Module twin of `proximal_matching_loss`."""

    def __init__(self, *, gamma: float, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma, self.reduction = gamma, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return proximal_matching_loss(prediction, target, gamma=self.gamma, reduction=self.reduction)
