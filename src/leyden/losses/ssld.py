"""Symmetric divergences (C. Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation
Alternative to Improve Backbones" (SSLD), 2021, arXiv 2103.05959; authors' code: PaddlePaddle/PaddleClas).

What the code calls the Jensen-Shannon divergence is half of the symmetric Kullback-Leibler divergence, without the
square of the temperature.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses._pairs import check_pair, check_temperature, log_probabilities
from leyden.losses.reduction import reduce_loss

__all__ = ["SSLD", "ssld_loss"]


def ssld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mixture: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """``(KL(q || p) + KL(p || q)) / 2`` of the softened outputs p of the student and q of the teacher.

    Args:
        student_logits: ``[N, C]``, or ``[N, ..., C]`` with one divergence for each place.
        teacher_logits: of the same shape; the caller detaches them.
        temperature: T.
        mixture: compare each side with their mean instead, ``(KL(q || m) + KL(p || m)) / 2``, the Jensen-Shannon
            divergence, which is at most log 2.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N, ...]``).

    Raises:
        ValueError: ``temperature`` is not positive, or the shapes differ; or another ``reduction``.
    """
    check_temperature(temperature)
    check_pair(student_logits, teacher_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits, temperature)
    if mixture:
        mean = torch.logaddexp(student, teacher) - math.log(2.0)
        divergence = _divergence(mean, teacher) + _divergence(mean, student)
    else:
        divergence = _divergence(student, teacher) + _divergence(teacher, student)
    return reduce_loss(0.5 * divergence, reduction)


class SSLD(nn.Module):
    """Module twin of `ssld_loss`."""

    def __init__(self, *, temperature: float = 1.0, mixture: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.mixture, self.reduction = temperature, mixture, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return ssld_loss(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            mixture=self.mixture,
            reduction=self.reduction,
        )


def _divergence(predicted: Tensor, true: Tensor) -> Tensor:
    return functional.kl_div(predicted, true, reduction="none", log_target=True).sum(-1)
