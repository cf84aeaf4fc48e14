"""Relations of predictions (T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger Teacher"
(DIST), 2022, arXiv 2205.10536; authors' code: hunto/DIST_KD)."""

import torch
from torch import Tensor, nn

from leyden.losses._pairs import check_rows, check_temperature, probabilities

__all__ = ["DIST", "dist_loss"]


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """One minus the correlation of the softened outputs, of each sample over classes and of each class over samples.

    The second part depends on what else is in the batch; on several processes it is that of each one's share.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``; the caller detaches them.
        beta: weight of ``T^2 (1 - mean over samples of the correlation over classes)``.
        gamma: weight of ``T^2 (1 - mean over classes of the correlation over samples)``.
        temperature: T.

    Raises:
        ValueError: ``temperature`` is not positive, or the shapes differ.
    """
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits)
    student, teacher = (probabilities(logits, temperature) for logits in (student_logits, teacher_logits))
    mean = 1.0 / student.shape[1]  # over classes
    between_classes = 1.0 - _cosine(student - mean, teacher - mean, dim=1).mean()
    within_classes = 1.0 - _cosine(student - student.mean(0), teacher - teacher.mean(0), dim=0).mean()
    return temperature**2 * (beta * between_classes + gamma * within_classes)


class DIST(nn.Module):
    """Module twin of `dist_loss`."""

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return dist_loss(student_logits, teacher_logits, beta=self.beta, gamma=self.gamma, temperature=self.temperature)


def _cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
    # two thirds of the time of torch's cosine_similarity
    norms = a.square().sum(dim).clamp(min=1e-16).sqrt() * b.norm(dim=dim)
    with torch.autocast(a.device.type, enabled=False):  # products of improbable classes are too small for float16
        return torch.linalg.vecdot(a, b, dim=dim) / (norms + 1e-8)
