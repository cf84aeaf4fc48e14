"""Soft targets (G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2)."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from leyden.core.batch import Batch, Terms
from leyden.core.callback import MethodCallback
from leyden.core.network import Network, Outputs

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["SoftTargets"]


class SoftTargets(MethodCallback):
    """Pulls the softened outputs of the network towards those of frozen teachers.

    The loss becomes ``(1 - weight) task + weight T^2 KL(p_teacher^T || p_student^T)``, where ``p^T`` is the softmax of
    ``logits / T``; of several teachers, ``p_teacher^T`` is the mean. The teachers see the same (augmented) input.

    Args:
        teachers: one network or several, with the student's outputs.
        weight: share of the soft targets, in [0, 1].
        temperature: T.

    Raises:
        ValueError: there is no teacher, or a number is out of range.
    """

    def __init__(self, teachers: Network | list[Network], *, weight: float = 0.9, temperature: float = 4.0) -> None:
        self.teachers = [teachers] if isinstance(teachers, Network) else list(teachers)
        if not self.teachers:
            raise ValueError("teachers must be at least one network, got an empty list")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight must lie in [0, 1], got {weight}")
        if temperature <= 0.0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.weight = weight
        self.temperature = temperature

    def build(self, method: "Method") -> None:
        """Attaches the teachers."""
        for number, teacher in enumerate(self.teachers):
            method.attach_frozen(f"{self.state_key}_teacher_{number}", teacher)

    def loss_terms(self, method: "Method", batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Weighs the other terms down and adds ``soft_targets``.

        Raises:
            ValueError: a teacher's outputs have another shape than the student's.
        """
        t = self.temperature
        with torch.no_grad():
            logits = [teacher(batch["input"]) for teacher in self.teachers]  # [N, C] each
        if any(teacher.shape != outputs.logits.shape for teacher in logits):
            shapes = ", ".join(str(tuple(teacher.shape)) for teacher in logits)
            raise ValueError(f"teachers must have outputs {tuple(outputs.logits.shape)} as the student, got {shapes}")
        target = torch.stack([(teacher.float() / t).softmax(-1) for teacher in logits]).mean(0)
        student = (outputs.logits.float() / t).log_softmax(-1)
        soft = t**2 * functional.kl_div(student, target, reduction="batchmean")
        return {name: (1.0 - self.weight) * term for name, term in terms.items()} | {"soft_targets": self.weight * soft}
