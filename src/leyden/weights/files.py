"""Files of weights, as one training stage hands them to the next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

__all__ = ["WeightsFile", "load_weights", "pack_weights"]

WeightsFile = Annotated[str, "weights"]  # path of a safetensors file with the state dict of a network


def pack_weights(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the content of a file of weights.

    Args:
        state: state dict of a network.
        metadata: what the file says of itself.
    """
    # each name gets numbers of its own: the format refuses tied weights
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, metadata={"leyden": "weights", **(metadata or {})})


def load_weights(module: nn.Module, path: WeightsFile, *, growing: str | None = None) -> None:
    """Loads a file of weights into a module.

    Args:
        module: has the same names and shapes, except for what grows.
        path: the file.
        growing: a submodule whose tensors may have more rows than the file has: the first rows are loaded, the others
            stay (the head of a classifier that gets new classes).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, or does not fit the module.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    try:
        saved = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    here = module.state_dict()
    kind = type(module).__name__
    for name in [*here, *saved]:
        if name not in saved or name not in here:
            lacking = "the file" if name in here else f"the {kind}"
            raise ValueError(f"the weights {path} do not fit the {kind}: {lacking} has no {name!r}")
        new, old = here[name].shape, saved[name].shape
        grows = growing is not None and name.startswith(f"{growing}.") and len(new) > 0
        if new != old and not (grows and new[1:] == old[1:] and new[0] > old[0]):
            raise ValueError(
                f"the weights {path} do not fit the {kind}: {name!r} has shape {tuple(old)} in the file and "
                f"{tuple(new)} in the network"
            )
    for name, tensor in saved.items():
        here[name][: len(tensor)].copy_(tensor) if tensor.ndim else here[name].copy_(tensor)
