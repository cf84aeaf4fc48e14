"""CAST (W. Huang et al., "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large
Language Models", 2025, arXiv 2509.25996)."""

import copy
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.callbacks._prunes_at_end import PrunesAtEnd
from leyden.core import Batch, Method, Outputs, Terms
from leyden.core.distributed import shard_like, whole
from leyden.nn import GroupScale, prunable_layers, stored_weight
from leyden.optim import AdamS
from leyden.weights import nm_mask

__all__ = ["CAST"]


class CAST(PrunesAtEnd):
    """Trains, by `leyden.optim.AdamS`, layers that have ``n`` in every ``m`` weights along the inputs in the end.

    The forward pass is dense throughout. Each layer gets trained scales (`leyden.nn.GroupScale`), and the loss becomes
    ``(1 - eta) task + eta KL(teacher || student)`` with the network at the start of the fit as teacher: put it behind
    `leyden.callbacks.InitialWeights`. At the end of the fit and before evaluations, the weights outside of the mask,
    nearly 0 by then, become 0. Checkpoints hold weights and scales: evaluate them with this callback in the list, too.

    Args:
        n: weights of a group that are kept; that of the optimizer.
        m: size of a group; that of the optimizer.
        groups: scales per output; 0 for none.
        eta: share of the teacher; 0 for none, as when training starts from nothing.
        skip: dotted names of modules in the network that stay dense, with all that is in them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, n: int = 2, m: int = 4, *, groups: int = 2, eta: float = 1 / 3, skip: Sequence[str] = ("head",)
    ) -> None:
        if not 1 <= n <= m:
            raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
        if groups < 0:
            raise ValueError(f"groups must be at least 0, got {groups}")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.n, self.m = n, m
        self.groups = groups
        self.eta = eta
        self.skip = tuple(skip)
        self._layers: dict[str, nn.Module] = {}

    def build(self, method: Method) -> None:
        """Copies the teacher and scales the layers.

        Raises:
            ValueError: there is no layer for it, or its inputs are no multiple of ``groups``.
        """
        self._layers = prunable_layers(method.network, skip=self.skip, m=self.m)
        if self.eta:
            method.attach_frozen(f"{self.state_key}_teacher", copy.deepcopy(method.network), save=True)
        if self.groups:
            for name, layer in self._layers.items():
                weight = stored_weight(layer)
                try:
                    scale = GroupScale(weight.shape[0], weight.shape[1], self.groups).to(weight)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
                parametrize.register_parametrization(layer, "weight", scale)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the optimizer, and tells it the number of steps if it does not know.

        Raises:
            MisconfigurationException: it is not `leyden.optim.AdamS`, or one with another pattern.
        """
        weights = {id(stored_weight(layer)) for layer in self._layers.values()}
        for optimizer in trainer.optimizers:
            if not isinstance(optimizer, AdamS):
                raise MisconfigurationException(
                    f"CAST needs the optimizer leyden.optim.AdamS, got {type(optimizer).__name__}"
                )
            optimizer.leave_dense(
                p for group in optimizer.param_groups for p in group["params"] if id(p) not in weights
            )
            for group in optimizer.param_groups:
                if (group["n"], group["m"]) != (self.n, self.m):
                    raise MisconfigurationException(
                        f"CAST prunes to {self.n}:{self.m}, AdamS to {group['n']}:{group['m']}: give both the same"
                    )
                if group["total_steps"] is None:
                    if trainer.estimated_stepping_batches == float("inf"):
                        raise MisconfigurationException("AdamS needs total_steps, which an endless fit does not have")
                    group["total_steps"] = int(trainer.estimated_stepping_batches)
                if not group["sparse"] and any(id(p) in weights for p in group["params"]):
                    raise MisconfigurationException(
                        "CAST prunes weights of a parameter group with sparse=False: take that out, or change skip"
                    )

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Weighs the other terms down and adds ``cast``, the divergence from the teacher."""
        if not self.eta:
            return terms
        teacher = method.frozen[f"{self.state_key}_teacher"]
        with torch.no_grad():
            target = teacher(batch["input"]).float().log_softmax(-1)  # [N, ..., C]
        student = outputs.logits.float().log_softmax(-1)
        num_predictions = student[..., 0].numel()
        divergence = functional.kl_div(student, target, log_target=True, reduction="sum") / num_predictions
        return {name: (1.0 - self.eta) * term for name, term in terms.items()} | {"cast": self.eta * divergence}

    def prune(self, trainer: Trainer, method: Method) -> None:
        """Sets the weights outside of the mask to zero."""
        for layer in self._layers.values():
            weight = stored_weight(layer).data
            weight.mul_(shard_like(nm_mask(whole(weight), self.n, self.m), weight))
