"""Starts a fit from given weights."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from leyden.core.callback import MethodCallback
from leyden.weights.checkpoint_file import CheckpointFile
from leyden.weights.files import WeightsFile, load_weights

if TYPE_CHECKING:
    from leyden.core.method import Method

__all__ = ["InitialWeights"]


class InitialWeights(MethodCallback):
    """Loads the network's weights from a file before the optimizer is made; a resumed run goes on with its own.

    Args:
        weights: safetensors file of the network's state dict; None leaves the network as it is (the first of several
            rounds).
        grow_head: whether the network's linear head gets as many outputs as the data have classes, or the file if it
            has more. The outputs of the file are the first; the others are new.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network, or a head that shall grow is not linear.
    """

    def __init__(self, weights: WeightsFile | None = None, *, grow_head: bool = False) -> None:
        self.weights = weights
        self.grow_head = grow_head

    def build(self, method: "Method") -> None:
        """Makes the head larger, and loads."""
        if self.grow_head:
            self._grow_head(method)
        if self.weights is not None:
            load_weights(method.network, self.weights, growing="head" if self.grow_head else None)

    def _grow_head(self, method: "Method") -> None:
        head = method.network.head
        if not isinstance(head, nn.Linear):
            raise ValueError(f"grow_head needs a network whose head is an nn.Linear, got a {type(head).__name__}")
        wanted = [head.out_features, getattr(method.datamodule, "num_classes", None) or 0]
        if self.weights is not None:
            wanted.append(_num_outputs(self.weights))
        if max(wanted) == head.out_features:
            return
        larger = nn.Linear(head.in_features, max(wanted), bias=head.bias is not None)
        with torch.no_grad():
            larger.weight[: head.out_features] = head.weight
            if head.bias is not None:
                larger.bias[: head.out_features] = head.bias
        method.replace("network.head", larger)


def _num_outputs(path: WeightsFile) -> int:
    file = CheckpointFile(path)
    return len(file["head.weight"]) if "head.weight" in file else 0
