"""Networks for micro-batches (S. Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", 2019, arXiv 1903.10520)."""

from leyden.core.network import Network
from leyden.nn.batch_channel_norm import convert_batch_channel_norm
from leyden.nn.weight_standardization import convert_weight_standardization

__all__ = ["batch_channel_normalized"]


def batch_channel_normalized(network: Network, *, num_groups: int = 32, estimated: bool = True) -> Network:
    """Gives a network batch-channel norms and standardised weights; in a config it stands where a network does.

    Args:
        network: is changed in place; has batch norms and convolutions.
        num_groups: groups of channels; must divide the channels of each batch norm.
        estimated: whether batch norms go by their running statistics in training too, for batches of a few samples.

    Returns:
        The network that was given.

    Raises:
        ValueError: there is no batch norm or no convolution, or ``num_groups`` does not divide the channels.
    """
    convert_batch_channel_norm(network, num_groups, estimated=estimated)
    convert_weight_standardization(network)
    return network
