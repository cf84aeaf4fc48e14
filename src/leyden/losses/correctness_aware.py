"""Correctness-aware calibration (Y. Liu, L. Wang, Y. Zou, J. Zou, L. Zheng, "Optimizing Calibration by Gaining Aware of
Prediction Correctness", 2024, arXiv 2404.13016).

Original code: liuyvchi/Correctness-aware-calibration, ``src/cal_metrics/temperature_scaling_CA.py``. It divides by 0 in
a batch without a wrong (or without a right) prediction; here the plain mean is taken then.
"""

import torch
from torch import Tensor, nn

__all__ = ["CorrectnessAware", "correctness_aware_loss"]


def correctness_aware_loss(
    calibrated_logits: Tensor, logits: Tensor, target: Tensor, *, balanced: bool = True
) -> Tensor:
    """Squared distance of the calibrated confidence from 1 where a prediction is right, from 0 where it is wrong.

    Args:
        calibrated_logits: what is trained, ``[N, C]``.
        logits: that decide what is predicted, ``[N, C]``; they get no gradient.
        target: class numbers, int64 ``[N]``, or probabilities ``[N, C]``, of which the largest counts.
        balanced: whether right and wrong predictions have half of the weight each, however many they are.

    Raises:
        ValueError: shapes differ, or there is no sample.
    """
    if logits.ndim != 2 or calibrated_logits.shape != logits.shape or not len(logits):
        raise ValueError(
            "calibrated_logits and logits must have the same shape [N, C], N at least 1, got "
            f"{tuple(calibrated_logits.shape)} and {tuple(logits.shape)}"
        )
    classes = target if target.ndim == 1 else target.argmax(-1)
    if classes.shape != logits.shape[:1]:
        raise ValueError(f"target must be [N] or [N, C] for logits {tuple(logits.shape)}, got {tuple(target.shape)}")
    wide = torch.promote_types(calibrated_logits.dtype, torch.float32)
    confidence = calibrated_logits.to(wide).softmax(-1).amax(-1)  # [N]
    correct = (logits.argmax(-1) == classes).to(wide)
    error = (confidence - correct).square()
    share = correct.mean()
    weight = torch.where(correct > 0.0, 1.0 - share, share)
    even = torch.ones_like(weight)
    weight = torch.where(weight.sum() > 0.0, weight, even) if balanced else even
    return (weight * error).sum() / weight.sum()


class CorrectnessAware(nn.Module):
    """Module twin of `correctness_aware_loss`."""

    def __init__(self, *, balanced: bool = True) -> None:
        super().__init__()
        self.balanced = balanced

    def forward(self, calibrated_logits: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return correctness_aware_loss(calibrated_logits, logits, target, balanced=self.balanced)
