"""Training towards small gradients (Y. Peng, P. Wang, J. Liu, S. Chen, "GLAD: Generalizable Tuning for Vision-Language
Models", 2025, arXiv 2507.13089), for updates of low rank (`leyden.callbacks.LoRA`) or all weights.

The paper steers the gradient by that of sharpness-aware minimization. How exactly is unverified: the authors have
published no code. Here it is the penalty of X. Zhao, H. Zhang, X. Hu, "Penalizing Gradient Norm for Efficiently
Improving Generalization in Deep Learning", 2022, arXiv 2202.03599, whose equation 8 mixes the same two gradients.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parametrize

from leyden.callbacks._double_backward import DoubleBackward
from leyden.callbacks._method_loss import MethodLoss, method_loss
from leyden.core import Batch, Method, Outputs, Terms, all_reduce_mean
from leyden.losses import gradient_norm

__all__ = ["GradientNormPenalty"]


class GradientNormPenalty(DoubleBackward):
    """Adds ``gradient_norm``, the norm of the gradient of the method's own loss by the parameters.

    It is the norm over all processes, but of each micro-batch on its own where gradients are accumulated. ``"exact"``
    differentiates the gradient. ``"two_pass"`` takes it a second time, at weights that are ``radius`` further along it,
    as some layers (fused attention, recurrent ones) and compiled networks need: with ``m = weight / radius`` a step has
    the gradient ``(1 - m) grad L(w) + m grad L(w + radius grad L(w) / ||grad L(w)||)``. Dropout draws anew in that
    pass; running statistics do not count it.

    Args:
        weight: factor of the term.
        params: shell-style patterns of the names of parameters, such as ``network.*.lora_?``; all that are trained if
            None.
        mode: ``"exact"`` or ``"two_pass"``.
        radius: step between the two passes.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, weight: float = 0.1, params: Sequence[str] | None = None, *, mode: str = "exact", radius: float = 0.05
    ) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if mode not in ("exact", "two_pass"):
            raise ValueError(f"mode must be 'exact' or 'two_pass', got {mode!r}")
        if not radius > 0.0:
            raise ValueError(f"radius must be positive, got {radius}")
        super().__init__(params, twice=mode == "exact")
        self.weight = weight
        self.mode = mode
        self.radius = radius

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the parameters.

        Raises:
            MisconfigurationException: as `DoubleBackward`, or weights are parametrized in two passes.
        """
        super().on_fit_start(trainer, pl_module)
        for name, layer in pl_module.named_modules():
            if self.mode == "two_pass" and parametrize.is_parametrized(layer):
                raise MisconfigurationException(
                    f"GradientNormPenalty moves the weights themselves in its second pass, but {name} is parametrized: "
                    "set mode to exact"
                )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``gradient_norm``."""
        loss = method_loss(method, batch, outputs)
        if self.mode == "exact":
            norm = gradient_norm(loss, list(self._parameters.values()))
        else:
            norm = self._two_passes(method, batch, loss)
        return terms | {"gradient_norm": self.weight * norm}

    def _two_passes(self, method: Method, batch: Batch, loss: Tensor) -> Tensor:
        """The norm; its gradient is the difference of two gradients, over the radius."""
        params = list(self._parameters.values())
        here = [all_reduce_mean(gradient) for gradient in _gradients(loss, params)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in here]))
        step = self.radius / (norm + 1e-12)
        moved = [(p.detach() + step * gradient).requires_grad_() for p, gradient in zip(params, here, strict=True)]
        # of buffers the second pass gets copies, so that it leaves those of the network as they are
        state = {f"method.{name}": buffer.clone() for name, buffer in method.named_buffers()}
        state |= {f"method.{name}": p for name, p in zip(self._parameters, moved, strict=True)}
        there = _gradients(functional_call(MethodLoss(method), state, (batch,)), moved)
        products = [(p * (after - before)).sum() for p, after, before in zip(params, there, here, strict=True)]
        surrogate = torch.stack(products).sum() / self.radius
        return norm + (surrogate - surrogate.detach())


def _gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    with torch.autocast(loss.device.type, enabled=False):  # as in the backward pass of a step
        return list(torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True))
