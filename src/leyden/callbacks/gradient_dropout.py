"""Gradient dropout regularity (K. Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
Vision-Language Models", 2023, arXiv 2307.15049, section 3.3)."""

import copy
from collections.abc import Sequence
from zlib import crc32

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from leyden.callbacks._double_backward import DoubleBackward
from leyden.core import Batch, Method, Network, Outputs, Terms, all_reduce_mean, sample_keys
from leyden.optim import gradient_dropout

__all__ = ["GradientDropout"]


class GradientDropout(DoubleBackward):
    """Drops entries of the gradient that would move outputs away from a teacher's, at random.

    The teacher's term, ``-T^2 sum p_teacher^T log p_student^T`` (``p^T`` is the softmax of ``logits / T``), has no part
    in the loss: its gradient decides by `leyden.optim.gradient_dropout` what is kept of the loss's. That is done once
    per optimizer step, on the sums over all micro-batches and processes. The random numbers are a function of the
    data's seed and the step.

    Args:
        strength: an entry that is not kept is ``1 - strength`` of what it was; the authors take 0.3 for some data.
        temperature: T.
        teacher: network with the student's outputs; None takes the network as it is at the start of the fit: put this
            behind `leyden.callbacks.InitialWeights`.
        params: shell-style patterns of the names of parameters, such as ``*.scores``; all that are trained if None.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = 1.0,
        teacher: Network | None = None,
        params: Sequence[str] | None = None,
    ) -> None:
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie in [0, 1], got {strength}")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        super().__init__(params, twice=False)
        self.strength = strength
        self.temperature = temperature
        self.teacher = teacher
        self._reference: list[Tensor] = []

    def build(self, method: Method) -> None:
        """Attaches the teacher, or a copy of the network, which checkpoints hold."""
        teacher = self.teacher if self.teacher is not None else copy.deepcopy(method.network)
        method.attach_frozen(f"{self.state_key}_teacher", teacher, save=self.teacher is None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what a fit that was cut has left."""
        super().on_fit_start(trainer, pl_module)
        self._reference = []

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds the gradient of the teacher's term to those of the other micro-batches; the terms stay.

        Raises:
            ValueError: the teacher's outputs have another shape than the student's.
        """
        with torch.no_grad():
            teacher = method.frozen[f"{self.state_key}_teacher"](batch["input"])  # [N, ..., C]
        if teacher.shape != outputs.logits.shape:
            raise ValueError(
                f"teacher must have outputs {tuple(outputs.logits.shape)} as the student, got {tuple(teacher.shape)}"
            )
        wide = torch.promote_types(teacher.dtype, torch.float32)
        target = (teacher.to(wide) / self.temperature).softmax(-1)
        student = (outputs.logits.to(wide) / self.temperature).log_softmax(-1)
        divergence = -(self.temperature**2) * (target * student).sum(-1).mean()
        share = divergence / method.trainer.accumulate_grad_batches
        parameters = list(self._parameters.values())
        with torch.autocast(share.device.type, enabled=False):  # as in the backward pass of a step
            found = torch.autograd.grad(share, parameters, retain_graph=True, materialize_grads=True)
        self._reference = [a + b for a, b in zip(self._reference, found, strict=True)] if self._reference else [*found]
        return terms

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops."""
        if not self._reference:  # a further step of the same batch
            return
        seed = getattr(getattr(trainer, "datamodule", None), "seed", 0)
        key = sample_keys(seed, trainer.global_step, torch.tensor([crc32(self.state_key.encode())]))
        generator = torch.Generator(pl_module.device).manual_seed(int(key))
        for p, reference in zip(self._parameters.values(), self._reference, strict=True):
            uniform = torch.rand(p.shape, generator=generator, device=p.device)
            if p.grad is not None:
                p.grad.copy_(gradient_dropout(p.grad, all_reduce_mean(reference), uniform, strength=self.strength))
        self._reference = []
