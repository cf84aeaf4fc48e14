"""Attention transfer (S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer", 2017, arXiv 1612.03928, equation 2; authors' code:
szagoruyko/attention-transfer).

The paper writes a sum of squared differences, the code takes their mean, as is done here: weights of about 1000 are
usual. Maps of two sizes are compared at the smaller one, as megvii-research/mdistiller does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AttentionTransfer", "attention_transfer_loss"]


def attention_transfer_loss(student_map: Tensor, teacher_map: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean squared difference of where the energy of the channels lies, each map of unit norm.

    Args:
        student_map: ``[N, C_s, H, W]``.
        teacher_map: ``[N, C_t, H', W']``; the caller detaches it. The larger of the two is averaged to the size of the
            smaller.
        power: of the absolute values that are averaged over channels.

    Raises:
        ValueError: they are no maps of the same N, or ``power`` is not positive.
    """
    if not power > 0.0:
        raise ValueError(f"power must be positive, got {power}")
    if student_map.ndim != 4 or teacher_map.ndim != 4 or len(student_map) != len(teacher_map):
        raise ValueError(
            f"student_map and teacher_map must be [N, C, H, W] of the same N, got {tuple(student_map.shape)} and "
            f"{tuple(teacher_map.shape)}"
        )
    size = min(student_map.shape[2], teacher_map.shape[2]), min(student_map.shape[3], teacher_map.shape[3])
    student, teacher = (_attention(map_, size, power) for map_ in (student_map, teacher_map))
    return (student - teacher).square().mean()


class AttentionTransfer(nn.Module):
    """Module twin of `attention_transfer_loss`."""

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Returns the loss."""
        return attention_transfer_loss(student_map, teacher_map, power=self.power)


def _attention(features: Tensor, size: tuple[int, int], power: float) -> Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if tuple(features.shape[2:]) != size:
        features = functional.adaptive_avg_pool2d(features, size)
    return functional.normalize(features.abs().pow(power).mean(1).flatten(1), dim=1)  # [N, H W]
