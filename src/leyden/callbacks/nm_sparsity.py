"""N:M sparse training by SR-STE (A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch", 2021, arXiv 2102.04010)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leyden.callbacks._masks import register_masks
from leyden.core import Batch, Method, MethodCallback, Outputs, Terms
from leyden.nn import SRSTE, prunable_layers, stored_weight

__all__ = ["NMSparsity"]


class NMSparsity(MethodCallback):
    """Trains linear layers and convolutions of which ``n`` in every ``m`` weights along the inputs are not zero.

    The network computes with the sparse weights, `leyden.nn.SRSTE`, from the first step on. SR-STE's pull on the
    weights that are zero is the term ``sr_ste``, ``decay / 2`` times the sum of their squares: its gradient counts once
    in an optimizer step, also where gradients are accumulated or the loss is scaled. The optimizer's own weight decay
    acts on the dense weights. Checkpoints hold the dense weights: evaluate them with this callback in the list, too.

    Args:
        n: weights of a group that are kept.
        m: size of a group.
        decay: factor of the pull; 0 for the plain straight-through estimator.
        skip: dotted names of modules in the network that stay dense, with all that is in them.

    Raises:
        ValueError: ``decay`` is negative, or ``n`` does not lie in 1 to ``m``.
    """

    def __init__(self, n: int = 2, m: int = 4, decay: float = 2e-4, skip: Sequence[str] = ("head",)) -> None:
        if not 1 <= n <= m:
            raise ValueError(f"n must lie in 1 to m, got n={n} and m={m}")
        if decay < 0.0:
            raise ValueError(f"decay must be at least 0, got {decay}")
        self.n, self.m = n, m
        self.decay = decay
        self.skip = tuple(skip)
        self._layers: list[nn.Module] = []

    def build(self, method: Method) -> None:
        """Makes the layers sparse.

        Raises:
            MisconfigurationException: another callback masks a layer.
            ValueError: there is no layer for it.
        """
        layers = prunable_layers(method.network, skip=self.skip, m=self.m)
        self._layers = list(layers.values())
        # without decay: the pull is a term of the loss
        register_masks(layers, {name: SRSTE(self.n, self.m, decay=0.0) for name in layers})

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``sr_ste``."""
        if not self.decay:
            return terms
        pull = torch.stack([_pruned_weight(layer).square().sum() for layer in self._layers]).sum()
        return terms | {"sr_ste": terms.get("sr_ste", 0.0) + 0.5 * self.decay * pull}


def _pruned_weight(layer: nn.Module) -> Tensor:
    # the step's weights are cached: their zeros tell which entries were pruned
    return stored_weight(layer) * (layer.weight == 0.0)
