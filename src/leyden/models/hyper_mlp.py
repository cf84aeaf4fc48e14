"""A multilayer perceptron whose hidden layers depend on knobs that come with the input."""

from collections.abc import Sequence

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive
from leyden.models.mlp import MLP
from leyden.nn.magnitude_invariant import HyperModule

__all__ = ["HyperMLP"]


class HyperMLP(Network):
    """`MLP` on flattened inputs; a hypernetwork predicts its hidden layers from the last entries of each input.

    Args:
        in_features: numbers in one input, the knobs included.
        num_outputs: C.
        num_knobs: how many of the last numbers are knobs, in [0, 1]; the network itself does not get them.
        hidden: sizes of the hidden layers, at least one.
        hyper_hidden: sizes of the hypernetwork's hidden layers.
        encode: whether the hypernetwork is magnitude invariant, see `leyden.nn.HyperNetwork`.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        num_knobs: int = 1,
        *,
        hidden: Sequence[int] = (32,),
        hyper_hidden: Sequence[int] = (16, 64),
        encode: bool = True,
    ) -> None:
        super().__init__()
        check_positive(num_knobs=num_knobs)
        if not hidden or in_features <= num_knobs:
            raise ValueError(
                f"hidden must not be empty and in_features above num_knobs, got {tuple(hidden)}, {in_features} and "
                f"{num_knobs}"
            )
        mlp = MLP(in_features - num_knobs, num_outputs, hidden)
        self.num_knobs = num_knobs
        self.body = HyperModule(mlp.body, num_knobs, hidden=hyper_hidden, encode=encode)
        self.feature_dim = mlp.feature_dim
        self.head: nn.Module = mlp.head

    def features(self, x: Tensor) -> Tensor:
        """Maps ``[N, ...]``, with ``in_features`` numbers per row, to the last hidden layer ``[N, D]``."""
        x = x.flatten(1)
        return self.body(x[:, : -self.num_knobs], x[:, -self.num_knobs :])
