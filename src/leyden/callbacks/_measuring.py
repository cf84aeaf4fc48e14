"""Derivatives of a method's loss that are no part of a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from torch.nn.attention import SDPBackend, sdpa_kernel

from leyden.core.evaluating import evaluating
from leyden.core.method import Method

__all__ = ["measuring"]


@contextmanager
def measuring(trainer: Trainer, method: Method) -> Iterator[None]:
    """Evaluation mode, the trainer's precision but for autocast, and attention that can be differentiated twice."""
    with (
        evaluating(method),
        trainer.precision_plugin.train_step_context(),
        torch.autocast(method.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield
