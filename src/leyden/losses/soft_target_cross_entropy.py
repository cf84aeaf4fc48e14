"""Cross entropy with the softmax of what a teacher gives (W. Tang and others, "Multiple Instance Learning Framework
with Masked Hard Instance Mining for Whole Slide Image Classification", 2023, arXiv 2307.15254, section 3.3; authors'
code: DearCaat/MHIM-MIL).
"""

from torch import Tensor, nn

from leyden.losses._pairs import log_probabilities, probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["SoftTargetCrossEntropy", "soft_target_cross_entropy_loss"]


def soft_target_cross_entropy_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    teacher_temperature: float = 0.1,
    student_temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of ``softmax(student / T_s)`` with ``softmax(teacher / T_t)``.

    Args:
        student: scores, or features taken for scores, ``[N, D]``.
        teacher: those of the teacher, ``[N, D]``; they get no gradient.
        teacher_temperature: T_t; below T_s it sharpens what the student is to meet.
        student_temperature: T_s.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, a temperature is not positive, or another ``reduction``.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher must have the shape of student, {tuple(student.shape)}, got {tuple(teacher.shape)}")
    temperatures = {"teacher_temperature": teacher_temperature, "student_temperature": student_temperature}
    for name, value in temperatures.items():
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}")
    wanted = probabilities(teacher.detach(), teacher_temperature)
    given = log_probabilities(student, student_temperature)
    return reduce_loss(-(wanted * given).sum(-1), reduction)


class SoftTargetCrossEntropy(nn.Module):
    """Module twin of `soft_target_cross_entropy_loss`."""

    def __init__(
        self, *, teacher_temperature: float = 0.1, student_temperature: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.teacher_temperature, self.student_temperature = teacher_temperature, student_temperature
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Calls the function."""
        return soft_target_cross_entropy_loss(
            student,
            teacher,
            teacher_temperature=self.teacher_temperature,
            student_temperature=self.student_temperature,
            reduction=self.reduction,
        )
