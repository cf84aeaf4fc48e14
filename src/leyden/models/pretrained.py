"""A network with weights from a file."""

from leyden.core.network import Network
from leyden.weights.files import WeightsFile, load_weights

__all__ = ["pretrained"]


def pretrained(network: Network, weights: WeightsFile) -> Network:
    """Loads weights into a network; in a config it stands where a network does, as ``class_path``.

    Args:
        network: gets the weights.
        weights: safetensors file of exactly its state dict.

    Returns:
        The network that was given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network.
    """
    load_weights(network, weights)
    return network
