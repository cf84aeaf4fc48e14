"""Pruning in one shot when training has ended (A. Jaiswal, S. Liu, T. Chen, Z. Wang, "The Emergence of Essential
Sparsity in Large Pre-trained Models: The Weights that Matter", 2023, arXiv 2306.03805, section 2)."""

from collections.abc import Sequence

from lightning.pytorch import Trainer
from torch import nn

from leyden.callbacks._prunes_at_end import PrunesAtEnd
from leyden.core import Method
from leyden.core.distributed import shard_like, whole
from leyden.nn import prunable_layers, stored_weight
from leyden.weights import magnitude_prune, nm_prune

__all__ = ["OneShotPruning"]


class OneShotPruning(PrunesAtEnd):
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

    def build(self, method: Method) -> None:
        """Checks that there are layers to prune."""
        self._layers(method)

    def prune(self, trainer: Trainer, method: Method) -> None:
        """Prunes."""
        stored = {name: stored_weight(layer).data for name, layer in self._layers(method).items()}
        weights = {name: whole(weight) for name, weight in stored.items()}
        if isinstance(self.sparsity, float | int):
            pruned = magnitude_prune(weights, self.sparsity, scope=self.scope)
        else:
            pruned = nm_prune(weights, *self.sparsity)
        for name, weight in stored.items():
            weight.copy_(shard_like(pruned[name], weight))

    def _layers(self, method: Method) -> dict[str, nn.Module]:
        m = 1 if isinstance(self.sparsity, float | int) else self.sparsity[1]
        return prunable_layers(method.network, skip=self.skip, m=m)
