"""Losses of the robust mean teacher (M. Döbler, R. A. Marsden, B. Yang, "Robust Mean Teacher for Continual and Gradual
Test-Time Adaptation", 2022, arXiv 2211.13081, section 3; authors' code: mariodoebler/test-time-adaptation)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses.reduction import reduce_loss

__all__ = [
    "MultiviewContrastive",
    "SoftSymmetricCrossEntropy",
    "multiview_contrastive_loss",
    "nearest_prototype",
    "soft_symmetric_cross_entropy_loss",
]


def soft_symmetric_cross_entropy_loss(
    logits: Tensor, teacher_logits: Tensor, *, alpha: float = 0.5, reduction: str = "mean"
) -> Tensor:
    """Cross entropy of a student p and a teacher q in both directions, ``-(1 - a) sum q log p - a sum p log q``.

    Args:
        logits: scores of the student before softmax, ``[N, C]``; both directions have a gradient to them.
        teacher_logits: scores of the teacher, ``[N, C]``; get no gradient.
        alpha: a, the share of the second direction; 0 is cross entropy with soft targets.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, ``alpha`` is outside of [0, 1], or another ``reduction``.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of logits, {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    student, teacher = (
        scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
        for scores in (logits, teacher_logits.detach())
    )
    forward, backward = (teacher.exp() * student).sum(-1), (student.exp() * teacher).sum(-1)  # [N] each
    return reduce_loss(-(1.0 - alpha) * forward - alpha * backward, reduction)


class SoftSymmetricCrossEntropy(nn.Module):
    """Module twin of `soft_symmetric_cross_entropy_loss`."""

    def __init__(self, *, alpha: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha, self.reduction = alpha, reduction

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return soft_symmetric_cross_entropy_loss(logits, teacher_logits, alpha=self.alpha, reduction=self.reduction)


def multiview_contrastive_loss(features: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Contrast of several views of each sample with the views of all others; every view is an anchor.

    Args:
        features: of N samples in V views, ``[N, V, D]``; only their directions count.
        temperature: by which cosines are divided.

    Raises:
        ValueError: another shape, fewer than 2 views, or ``temperature`` is not positive.
    """
    if features.ndim != 3 or features.shape[0] < 1 or features.shape[1] < 2:
        raise ValueError(f"features must be [N, V, D] with 1 sample and 2 views or more, got {tuple(features.shape)}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    num_samples, num_views = features.shape[:2]
    rows = functional.normalize(features.flatten(0, 1).to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (rows @ rows.T / temperature).masked_fill(itself, -torch.inf)
    log_shares = scores.log_softmax(-1).masked_fill(itself, 0.0)  # [N V, N V]
    sample = torch.arange(num_samples, device=rows.device).repeat_interleave(num_views)
    positive = sample[:, None] == sample
    return -(log_shares * positive).sum() / (len(rows) * (num_views - 1))


class MultiviewContrastive(nn.Module):
    """Module twin of `multiview_contrastive_loss`."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """Returns the loss."""
        return multiview_contrastive_loss(features, temperature=self.temperature)


def nearest_prototype(features: Tensor, prototypes: Tensor) -> Tensor:
    """Numbers of the prototypes ``[C, D]`` with the largest cosines to features ``[N, D]``, int64 ``[N]``.

    Raises:
        ValueError: features and prototypes differ in size.
    """
    if features.ndim != 2 or prototypes.ndim != 2 or features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"features [N, D] and prototypes [C, D] must have the same D, got {tuple(features.shape)} and "
            f"{tuple(prototypes.shape)}"
        )
    # the length of a feature does not change which prototype is nearest
    return (features @ functional.normalize(prototypes, dim=-1).to(features.dtype).T).argmax(-1)
