"""Passes through a network in training that leave its batch norms as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["frozen_running_stats"]


@contextmanager
def frozen_running_stats(module: nn.Module) -> Iterator[None]:
    """Within it, batch norms do not move their running statistics, nor count; they normalise as their mode says.

    For the second pass of a step, as at perturbed weights: the statistics are to be those of the weights themselves.

    Args:
        module: the network.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
