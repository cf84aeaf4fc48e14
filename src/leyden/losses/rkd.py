"""Relations between samples (W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", 2019, arXiv
1904.05068, equations 6 and 8; authors' code: lenscloth/RKD)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RKD", "rkd_loss"]


def rkd_loss(student: Tensor, teacher: Tensor, *, distance_weight: float = 1.0, angle_weight: float = 2.0) -> Tensor:
    """Differences of all distances between samples, and of all angles that they form, as smooth L1.

    Each side's distances are divided by the mean of those that are not zero. It depends on what else is in the batch;
    on several processes it is that of each one's share. Time and memory grow with N^3.

    Args:
        student: embeddings, ``[N, D_s]``, N at least 2.
        teacher: ``[N, D_t]``; the caller detaches them.
        distance_weight: of the distances.
        angle_weight: of the cosines of the angles.

    Raises:
        ValueError: they are no embeddings of the same N.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher) or len(student) < 2:
        raise ValueError(
            f"student and teacher must be [N, D] of the same N, at least 2, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    student, teacher = (side.to(torch.promote_types(side.dtype, torch.float32)) for side in (student, teacher))
    loss = student.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):  # distances are small differences of large products
        if distance_weight != 0.0:
            loss = loss + distance_weight * functional.smooth_l1_loss(_distances(student), _distances(teacher))
        if angle_weight != 0.0:
            loss = loss + angle_weight * functional.smooth_l1_loss(_angles(student), _angles(teacher))
    return loss


class RKD(nn.Module):
    """Module twin of `rkd_loss`."""

    def __init__(self, *, distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss."""
        return rkd_loss(student, teacher, distance_weight=self.distance_weight, angle_weight=self.angle_weight)


def _distances(x: Tensor) -> Tensor:
    squares = x.square().sum(1)
    squared = (squares[:, None] + squares[None, :] - 2.0 * x @ x.T).clamp(min=1e-12)
    distances = squared.sqrt() * (1.0 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return distances / (distances.sum() / (distances > 0.0).sum())


def _angles(x: Tensor) -> Tensor:
    directions = functional.normalize(x[None] - x[:, None], dim=2)  # from i to j: [N, N, D]
    return directions @ directions.mT  # cosine at i between j and k: [N, N, N]
