"""A network whose features are measured, not made, by its head."""

from copy import deepcopy

from torch import Tensor, nn

from leyden.core.network import Network

__all__ = ["LinearProbe"]


class LinearProbe(Network):
    """Another network, whose head learns from its features while they learn nothing from the head.

    For features that are trained by something else, such as a callback, without labels.

    Args:
        network: the other one, of which this is a copy.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.body = deepcopy(network)
        self.head = _Detached(self.body.head)
        self.body.head = nn.Identity()
        self.feature_dim = network.feature_dim

    def features(self, x: Tensor) -> Tensor:
        """Maps inputs to features ``[N, D]``."""
        return self.body.features(x)


class _Detached(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach())
