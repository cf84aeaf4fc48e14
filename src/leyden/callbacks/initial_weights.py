"""Starts a fit from given weights."""

from typing import TYPE_CHECKING

from leyden.core.callback import MethodCallback
from leyden.weights.files import WeightsFile, load_weights

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["InitialWeights"]


class InitialWeights(MethodCallback):
    """Loads the network's weights from a file before the optimizer is made; a resumed run goes on with its own.

    Args:
        weights: safetensors file of the network's state dict; None leaves the network as it is (the first of several
            rounds).
        grow_head: whether the network's head may have more outputs than the file's, which are then the first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network.
    """

    def __init__(self, weights: WeightsFile | None = None, *, grow_head: bool = False) -> None:
        self.weights = weights
        self.grow_head = grow_head

    def build(self, method: "Method") -> None:
        """Loads."""
        if self.weights is not None:
            load_weights(method.network, self.weights, growing="head" if self.grow_head else None)
