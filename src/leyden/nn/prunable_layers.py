"""The layers that sparse training and pruning work on."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.nn._layers import check_skip, is_skipped

__all__ = ["prunable_layers", "stored_weight"]


def prunable_layers(network: nn.Module, *, skip: Sequence[str] = ("head",), m: int = 1) -> dict[str, nn.Module]:
    """Finds the linear layers and convolutions of a network, by their dotted names.

    Layers whose inputs cannot be cut into groups of ``m``, as the first convolution on an image, are left out, and a
    line says which.

    Args:
        network: the network.
        skip: dotted names of modules that are left out, with all that is in them.
        m: number that the input features, or the input channels of a group, are a multiple of.

    Raises:
        ValueError: there is no such layer, or no module of a name in ``skip``.
    """
    check_skip(network, skip)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, kinds) and not is_skipped(name, skip)
    }
    uneven = {name: layer.weight.shape[1] for name, layer in layers.items() if layer.weight.shape[1] % m}
    if not layers.keys() - uneven.keys():
        raise ValueError(
            f"{type(network).__name__} has no linear layer or convolution with a multiple of {m} inputs"
            + (f" outside of {', '.join(skip)}" if skip else "")
        )
    if uneven:
        from lightning.pytorch.utilities import rank_zero_info  # layers alone need no trainer

        named = ", ".join(f"{name} ({inputs} inputs)" for name, inputs in uneven.items())
        rank_zero_info(f"dense, because groups of {m} do not fit: {named}")
    return {name: layer for name, layer in layers.items() if name not in uneven}


def stored_weight(layer: nn.Module) -> Tensor:
    """The parameter of a layer's weight: what is stored where it is parametrized, else the weight itself."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.parametrizations.weight.original  # type: ignore[union-attr, return-value]
    return layer.weight  # type: ignore[return-value]
