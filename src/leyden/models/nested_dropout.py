"""A network with nested dropout on its features (Y. Chen, S. X. Hu, X. Shen, C. Ai, J. A. K. Suykens, "Compressing
Features for Learning with Noisy Labels", 2022)."""

from copy import deepcopy

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.nn.nested_dropout import NestedDropout

__all__ = ["NestedDropoutNetwork"]


class NestedDropoutNetwork(Network):
    """Another network, with `leyden.nn.NestedDropout` between its features and its head.

    Args:
        network: the other one, of which this is a copy.
        sigma: as in `leyden.nn.nested_dropout_distribution`, like ``mu``.
        mu: the most likely number of features.
        keep: how many features are kept in evaluation, as in `leyden.nn.NestedDropout`.
    """

    def __init__(self, network: Network, *, sigma: float, mu: float = 0.0, keep: int | None = None) -> None:
        super().__init__()
        self.body = deepcopy(network)
        self.head = self.body.head
        self.body.head = nn.Identity()
        self.feature_dim = network.feature_dim
        self.dropout = NestedDropout(self.feature_dim, sigma=sigma, mu=mu, keep=keep)

    def features(self, x: Tensor) -> Tensor:
        """Maps inputs to features ``[N, D]``, in training with some of the last ones 0."""
        return self.dropout(self.body.features(x))
