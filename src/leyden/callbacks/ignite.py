"""IGNITE (M. C. Dao, P. Le Nguyen, T. N. Truong, T. N. Hoang, "Incorporating Surrogate Gradient Norm to Improve Offline
Optimization Techniques", 2024, arXiv 2503.04242).

Original code: cuong-dm/IGNITE, ``design_baselines/gradient_ascent_IGNITE/trainers.py``. It takes the gradient of the
norm by a finite difference, and lets the multiplier become negative; here it is exact, and the multiplier stays at 0 or
above, as one of an inequality does. The defaults are those of its ``scripts/IGNITE/ga.py``.
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from leyden.callbacks._double_backward import DoubleBackward
from leyden.core import Batch, Method, Outputs, Terms
from leyden.losses import gradient_norm

__all__ = ["IGNITE", "ignite_multiplier"]


def ignite_multiplier(
    multiplier: Tensor, norm: Tensor, *, rho: float = 0.05, eps: float = 0.1, lr: float = 1e-3
) -> Tensor:
    """One step of dual ascent, ``max(0, multiplier + lr (rho norm - eps))``.

    Args:
        multiplier: of the constraint ``rho norm <= eps``, a scalar.
        norm: of the surrogate's gradient, before the step that it was measured in; a scalar.
        rho: radius in which the surrogate shall change little.
        eps: by how much at most.
        lr: learning rate of the multiplier.
    """
    return (multiplier + lr * (rho * norm - eps)).clamp(min=0.0)


class IGNITE(DoubleBackward):
    """Adds ``ignite``, ``multiplier * rho * ||grad G||``, where G is the mean output and its gradient that by weights.

    The norm is that over all processes, but of each micro-batch on its own where gradients are accumulated. After every
    optimizer step the multiplier moves by `ignite_multiplier`, such that ``rho ||grad G||`` comes to ``eps`` or below.

    Args:
        weight: the multiplier at the start; of IGNITE-2 throughout.
        rho: radius in which the surrogate shall change little.
        eps: by how much at most.
        dual_lr: learning rate of the multiplier.
        adaptive: whether the multiplier moves; False is IGNITE-2.
        output: what G is the mean of: the outputs themselves, ``"mean"``, or for classes their ``"logsumexp"``.

    Attributes:
        multiplier: a scalar tensor.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        weight: float = 1e-3,
        rho: float = 0.05,
        eps: float = 0.1,
        dual_lr: float = 1e-3,
        adaptive: bool = True,
        *,
        output: str = "mean",
    ) -> None:
        for name, value in (("weight", weight), ("rho", rho), ("eps", eps), ("dual_lr", dual_lr)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if output not in ("mean", "logsumexp"):
            raise ValueError(f"output must be 'mean' or 'logsumexp', got {output!r}")
        super().__init__()
        self.weight = weight
        self.rho = rho
        self.eps = eps
        self.dual_lr = dual_lr
        self.adaptive = adaptive
        self.output = output
        self.multiplier = torch.tensor(weight)
        self._norms: list[Tensor] = []  # of the micro-batches of a step
        self._batch_is_new = True
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step from which the fit goes on."""
        self._step = trainer.global_step
        self.multiplier = self.multiplier.to(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lets the next `loss_terms` measure: an optimizer may evaluate the loss several times, at other weights."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch_is_new = True

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``ignite``."""
        logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        mean_output = (logits if self.output == "mean" else logits.logsumexp(-1)).mean()
        norm = gradient_norm(mean_output, list(self._parameters.values()))
        if self._batch_is_new:
            self._norms.append(norm.detach())
            self._batch_is_new = False
        return terms | {"ignite": self.multiplier * self.rho * norm}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the multiplier, if the optimizer made a step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        norm, self._norms = torch.stack(self._norms).mean(), []
        if self.adaptive:
            self.multiplier = ignite_multiplier(self.multiplier, norm, rho=self.rho, eps=self.eps, lr=self.dual_lr)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.multiplier = state_dict["multiplier"]
