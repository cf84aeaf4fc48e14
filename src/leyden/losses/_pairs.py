"""What losses over two rows of logits, as those of a student and a teacher, have in common."""

import torch
from torch import Tensor

__all__ = [
    "check_class_numbers",
    "check_pair",
    "check_rows",
    "check_temperature",
    "log_probabilities",
    "probabilities",
    "softened",
]


def check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Checks that both have one shape, of two dimensions at least.

    Raises:
        ValueError: they have not.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim < 2:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape [N, ..., C], got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


def check_rows(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Checks that both have one shape ``[N, C]``.

    Raises:
        ValueError: they have not.
    """
    check_pair(student_logits, teacher_logits)
    if student_logits.ndim != 2:
        raise ValueError(
            f"student_logits must be [N, C], got {tuple(student_logits.shape)}: flatten what comes before C"
        )


def check_temperature(temperature: float) -> None:
    """Checks that it is positive.

    Raises:
        ValueError: it is not.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def check_class_numbers(target: Tensor | None, logits: Tensor) -> None:
    """Checks that the target is one class number per row of ``logits [N, C]``.

    Raises:
        ValueError: it is missing, soft, or of another length.
    """
    if target is None or target.is_floating_point() or target.shape != logits.shape[:-1]:
        got = "None" if target is None else f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target must be class numbers, int64 {tuple(logits.shape[:-1])}, got {got}")


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns ``log softmax(logits / T)`` over the last axis, in float32 at least."""
    return softened(logits, temperature).log_softmax(-1)


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns ``softmax(logits / T)`` over the last axis, in float32 at least."""
    return softened(logits, temperature).softmax(-1)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Returns ``logits / T``, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature
