"""Training of learned proximal networks (Z. Fang, S. Buchanan, J. Sulam, "What's in a Prior? Learned Proximal Networks
for Inverse Problems", 2023, arXiv 2310.14344; authors' code: ZhenghanFang/learned-proximal-networks)."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from leyden.core import Batch, Method, MethodCallback, Outputs, Terms, require_keys
from leyden.losses import proximal_matching_gamma, proximal_matching_loss

__all__ = ["ConvexWeights", "ProximalMatchingSchedule"]


class ConvexWeights(Callback):
    """Calls ``clamp_weights_`` of all modules that have it when a fit begins and after each step of an optimizer.

    So the potential of `leyden.nn.LearnedProximalNetwork` stays convex, also with averages of its weights.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clamps, and hooks into the optimizers.

        Raises:
            MisconfigurationException: no module has ``clamp_weights_``.
        """
        modules: list[Any] = [module for module in pl_module.modules() if hasattr(module, "clamp_weights_")]
        if not modules:
            raise MisconfigurationException(
                "ConvexWeights calls clamp_weights_ of modules, but none has it: remove it, or train "
                "leyden.nn.LearnedProximalNetwork"
            )

        def clamp(*_: Any) -> None:
            for module in modules:
                module.clamp_weights_()

        clamp()
        self._handles = [optimizer.register_step_post_hook(clamp) for optimizer in trainer.optimizers]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class ProximalMatchingSchedule(MethodCallback):
    """Replaces ``task``: by the mean absolute error at first, then by the proximal matching loss of ever smaller width.

    Evaluation keeps the method's own loss.

    Args:
        gamma_min: the last width; 0.08 times the root of the numbers in a target if None, as the authors have it.
        stages: number of widths, each half of the one before.
        pretrain: share of the steps with the absolute error. Without it the first gradients would vanish.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, gamma_min: float | None = None, stages: int = 4, pretrain: float = 0.5) -> None:
        if gamma_min is not None and not gamma_min > 0.0:
            raise ValueError(f"gamma_min must be positive, got {gamma_min}")
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        if not 0.0 < pretrain < 1.0:
            raise ValueError(f"pretrain must lie in (0, 1), got {pretrain}")
        self.gamma_min = gamma_min
        self.stages = stages
        self.pretrain = pretrain
        self._pretrain_steps = 0
        self._matching_steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the steps of the two parts.

        Raises:
            MisconfigurationException: the fit has no end, or fewer steps than there are stages.
        """
        total = trainer.estimated_stepping_batches
        if total == math.inf:
            raise MisconfigurationException(
                "ProximalMatchingSchedule needs the number of steps: set trainer.max_epochs or trainer.max_steps"
            )
        self._pretrain_steps = round(self.pretrain * total)
        self._matching_steps = int(total) - self._pretrain_steps
        if self._matching_steps < self.stages:
            raise MisconfigurationException(
                f"ProximalMatchingSchedule has {self.stages} stages, but only {self._matching_steps} of {total} steps "
                "for them: train for longer, or set stages or pretrain lower"
            )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Replaces ``task``.

        Raises:
            ValueError: outputs and targets have different shapes.
        """
        require_keys(batch, "target", user="ProximalMatchingSchedule")
        prediction, target = outputs.logits, batch["target"]
        if prediction.shape != target.shape:
            raise ValueError(
                f"ProximalMatchingSchedule needs targets of the shape of the outputs, {tuple(prediction.shape)}, got "
                f"{tuple(target.shape)}"
            )
        step = method.global_step - self._pretrain_steps
        if step < 0:
            return terms | {"task": functional.l1_loss(prediction, target)}
        gamma = proximal_matching_gamma(
            step,
            gamma_min=self.gamma_min or 0.08 * math.sqrt(target[0].numel()),
            stages=self.stages,
            total_steps=self._matching_steps,
        )
        return terms | {"task": proximal_matching_loss(prediction, target, gamma=gamma)}
