"""Distillation by optimal transport between samples (X. Cui et al., "Sinkhorn Distance Minimization for Knowledge
Distillation" (SinKD), 2024, arXiv 2402.17110; authors' code: 2018cx/SinKD).

The authors' class ignores its temperature and always uses 2.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leyden.losses._pairs import check_rows, check_temperature, probabilities

__all__ = ["SinkhornKD", "sinkhorn_kd_loss"]


def sinkhorn_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduction: str = "mean",
) -> Tensor:
    """Cost of moving the student's softened outputs of a batch onto the teacher's, whoever's sample they are.

    The cost of a pair is the L1 distance of the two distributions, the plan that of Sinkhorn's iterations, through
    which the gradient flows. It depends on what else is in the batch; on several processes the plan is that of each
    one's share.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``; the caller detaches them.
        temperature: T.
        epsilon: weight of the entropy of the plan; near 0 it becomes an assignment.
        iterations: rounds of normalising rows, then columns.
        reduction: ``"sum"`` as the authors have it, or ``"mean"`` (over N); there is no value per sample.

    Raises:
        ValueError: an argument is out of range, or the shapes differ; or another ``reduction``.
    """
    _check(temperature, epsilon, iterations, reduction)
    check_rows(student_logits, teacher_logits)
    student, teacher = (probabilities(logits, temperature) for logits in (student_logits, teacher_logits))
    cost = _L1Cost.apply(student, teacher) if student.device.type == "cpu" else torch.cdist(student, teacher, p=1.0)
    plan = -cost / epsilon  # logarithms, because exp(-2 / epsilon) may be too small a number
    for _ in range(iterations):
        plan = plan.log_softmax(1)
        plan = plan.log_softmax(0)
    total = (plan.exp() * cost).sum()
    return total if reduction == "sum" else total / len(cost)


class SinkhornKD(nn.Module):
    """Module twin of `sinkhorn_kd_loss`."""

    def __init__(
        self, *, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _check(temperature, epsilon, iterations, reduction)
        self.temperature, self.epsilon, self.iterations, self.reduction = temperature, epsilon, iterations, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the loss."""
        return sinkhorn_kd_loss(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reduction=self.reduction,
        )


class _L1Cost(torch.autograd.Function):
    """``cdist(a, b, p=1)`` on the CPU, a row at a time, so that all intermediate results stay in the cache.

    Where entries are equal the subgradient is -1, and that of cdist 0: of equal rows, all entries have the same one,
    which the softmax before it does not let through.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        cost, buffer, ones = a.new_empty(len(a), len(b)), torch.empty_like(b), b.new_ones(b.shape[1])
        for row, out in zip(a, cost, strict=True):
            torch.sub(row, b, out=buffer)
            torch.mv(buffer.abs_(), ones, out=out)
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        wants_a, wants_b = ctx.needs_input_grad
        return _l1_gradient(grad, a, b) if wants_a else None, _l1_gradient(grad.T, b, a) if wants_b else None


def _l1_gradient(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    larger, buffer = torch.empty_like(a), torch.empty_like(b)
    for row, weights, out in zip(a, grad, larger, strict=True):
        torch.gt(row, b, out=buffer)
        torch.mv(buffer.T, weights, out=out)
    return 2.0 * larger - grad.sum(1, keepdim=True)


def _check(temperature: float, epsilon: float, iterations: int, reduction: str) -> None:
    check_temperature(temperature)
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
