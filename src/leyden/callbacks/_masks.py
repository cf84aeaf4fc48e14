"""Masks of weights that callbacks put on the layers of a network."""

from collections.abc import Mapping

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils import parametrize

from leyden.nn import SRSTE, DecayedNM, FixedMask

__all__ = ["register_masks"]

_MASKS: dict[type[nn.Module], str] = {SRSTE: "NMSparsity", DecayedNM: "ProgressiveNM", FixedMask: "DynamicSparsity"}


def register_masks(layers: Mapping[str, nn.Module], parts: Mapping[str, nn.Module]) -> None:
    """Parametrizes the weights of layers by parts, both by name.

    Raises:
        MisconfigurationException: a layer has a mask of another kind already, so that both would choose its weights.
    """
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight"):
            for other in layer.parametrizations.weight:  # type: ignore[union-attr]
                if type(other) in _MASKS and type(other) is not type(parts[name]):
                    raise MisconfigurationException(
                        f"{_MASKS[type(parts[name])]} and {_MASKS[type(other)]} would both choose which weights of "
                        f"{name} are kept: remove one, or give them different layers by skip"
                    )
        parametrize.register_parametrization(layer, "weight", parts[name].to(layer.weight.device))  # type: ignore[arg-type]
