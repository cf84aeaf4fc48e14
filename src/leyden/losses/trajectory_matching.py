"""Losses of distilling a data set by matching the trajectories of experts (Z. Guo et al., "Towards Lossless Dataset
Distillation via Difficulty-Aligned Trajectory Matching", 2023, arXiv 2310.05773; authors' code: NUS-HPC-AI-Lab/DATM).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leyden.losses._pairs import log_probabilities, probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["SoftLabelLoss", "TrajectoryMatchingLoss", "soft_label_loss", "trajectory_matching_loss"]

Parameters = Mapping[str, Tensor] | Tensor


def trajectory_matching_loss(final: Parameters, start: Parameters, target: Parameters) -> Tensor:
    """How far a student ends from its target, ``||final - target||^2 / ||start - target||^2`` over all parameters.

    Args:
        final: the student's parameters after its steps, by name, or one tensor.
        start: those that it began with; constant.
        target: those that an expert has reached from there; constant.

    Raises:
        ValueError: the names or shapes differ.
    """
    if isinstance(final, Tensor) and isinstance(start, Tensor) and isinstance(target, Tensor):
        final, start, target = {"": final}, {"": start}, {"": target}
    elif isinstance(final, Tensor) or isinstance(start, Tensor) or isinstance(target, Tensor):
        raise ValueError("final, start and target must all be tensors, or all mappings from names to tensors")
    shapes = [{name: tuple(p.shape) for name, p in parameters.items()} for parameters in (final, start, target)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ValueError("final, start and target must have the same names and shapes")
    left, whole = (
        torch.stack([(p - target[name].detach()).square().sum() for name, p in parameters.items()]).sum()
        for parameters in (final, start)
    )
    return left / whole.detach()


class TrajectoryMatchingLoss(nn.Module):
    """Module twin of `trajectory_matching_loss`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, final: Parameters, start: Parameters, target: Parameters) -> Tensor:
        """Returns the loss."""
        return trajectory_matching_loss(final, start, target)


def soft_label_loss(logits: Tensor, target_logits: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy against labels that are logits themselves, and learn.

    Args:
        logits: scores before softmax, ``[N, C]``.
        target_logits: labels before softmax, ``[N, C]``; get a gradient too.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, or another ``reduction``.
    """
    if logits.shape != target_logits.shape:
        raise ValueError(
            f"target_logits must have the shape of logits, {tuple(logits.shape)}, got {tuple(target_logits.shape)}"
        )
    values = -(probabilities(target_logits) * log_probabilities(logits)).sum(-1)  # [N]
    return reduce_loss(values, reduction)


class SoftLabelLoss(nn.Module):
    """Module twin of `soft_label_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, target_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return soft_label_loss(logits, target_logits, reduction=self.reduction)
