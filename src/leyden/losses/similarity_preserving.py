"""Similarities between samples (F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv
1907.09682)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SimilarityPreserving", "similarity_preserving_loss"]


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices, each row of unit norm.

    It depends on what else is in the batch; on several processes it is that of each one's share.

    Args:
        student: activations, ``[N, ...]``, flattened.
        teacher: ``[N, ...]``, of any size; the caller detaches them.

    Raises:
        ValueError: they are not of the same N.
    """
    if len(student) != len(teacher) or student.ndim < 2 or teacher.ndim < 2:
        raise ValueError(
            f"student and teacher must be [N, ...] of the same N, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):  # sums of squares are too large for float16
        return (_similarities(student) - _similarities(teacher)).square().mean()


class SimilarityPreserving(nn.Module):
    """Module twin of `similarity_preserving_loss`."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss."""
        return similarity_preserving_loss(student, teacher)


def _similarities(x: Tensor) -> Tensor:
    x = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    return functional.normalize(x @ x.T, dim=1)
