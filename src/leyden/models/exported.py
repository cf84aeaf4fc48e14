"""Networks from the files that ``leyden export --to safetensors`` writes."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from leyden.core.network import Network
from leyden.weights.files import load_weights

__all__ = ["load_exported"]


def load_exported(path: str | os.PathLike[str]) -> Network:
    """Makes a network from a file that names its class and arguments and has its weights.

    Args:
        path: the file.

    Returns:
        The network, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not say which network it is of, or its weights do not fit that network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            network = json.loads((file.metadata() or {}).get("network", "null"))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if network is None:
        raise ValueError(f"{path} does not say which network its weights are of: leyden export writes files that do")
    from jsonargparse import ArgumentParser  # slow to import

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("network", type=Network)
    module = parser.instantiate_classes(parser.parse_object({"network": network})).network
    load_weights(module, str(path))
    return module.eval()
