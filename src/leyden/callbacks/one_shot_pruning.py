"""Pruning in one shot when training has ended (A. Jaiswal, S. Liu, T. Chen, Z. Wang, "The Emergence of Essential
Sparsity in Large Pre-trained Models: The Weights that Matter", 2023, arXiv 2306.03805, section 2)."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from leyden.core import Method, MethodCallback
from leyden.nn import prunable_layers, stored_weight
from leyden.weights import magnitude_prune, nm_prune

__all__ = ["OneShotPruning"]


class OneShotPruning(MethodCallback):
    """Sets the smallest weights of linear layers and convolutions to zero at the end of a fit, and before evaluations.

    Training, with its validations and checkpoints, is that without the callback. What is evaluated afterwards is
    pruned, also where it is loaded from a checkpoint.

    Args:
        sparsity: share of zeros, or ``(n, m)`` to keep ``n`` in every ``m`` weights along the inputs.
        scope: ``"global"`` compares all layers' weights with each other, ``"layer"`` those of each; not for ``(n, m)``.
        skip: dotted names of modules in the network that stay dense, with all that is in them.

    Raises:
        ValueError: ``sparsity`` or ``scope`` is out of range.
    """

    def __init__(
        self,
        sparsity: float | tuple[int, int] = 0.5,
        *,
        scope: str = "global",
        skip: Sequence[str] = ("head",),
    ) -> None:
        if isinstance(sparsity, float | int):
            magnitude_prune({}, sparsity, scope=scope)  # checks both
        elif not 1 <= sparsity[0] <= sparsity[1]:
            raise ValueError(f"sparsity must be a share, or (n, m) with 1 <= n <= m, got {sparsity}")
        self.sparsity = sparsity
        self.scope = scope
        self.skip = tuple(skip)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes."""
        self._prune(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes, unless it is a validation within a fit."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._prune(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes."""
        self._prune(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes."""
        self._prune(pl_module)

    def _prune(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        m = 1 if isinstance(self.sparsity, float | int) else self.sparsity[1]
        layers = prunable_layers(pl_module.network, skip=self.skip, m=m)
        weights = {name: stored_weight(layer).data for name, layer in layers.items()}
        if isinstance(self.sparsity, float | int):
            pruned = magnitude_prune(weights, self.sparsity, scope=self.scope)
        else:
            pruned = nm_prune(weights, *self.sparsity)
        for name, weight in weights.items():
            weight.copy_(pruned[name])
