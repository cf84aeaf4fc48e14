"""Multilayer perceptron: linear layers with an activation between them."""

from collections.abc import Sequence

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive

__all__ = ["MLP"]


class MLP(Network):
    """Multilayer perceptron on flattened inputs.

    Args:
        in_features: numbers in one input.
        num_outputs: C, classes or regression targets.
        hidden: sizes of the hidden layers; without any, the network is linear.
        activation: class of the module behind each hidden layer.
        dropout: rate of dropout behind each activation.

    Raises:
        ValueError: a size below 1, or a rate outside [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        hidden: Sequence[int] = (128, 128),
        *,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_outputs=num_outputs)
        check_dropout(dropout)
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden must hold sizes of 1 or more, got {tuple(hidden)}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((in_features, *hidden), hidden, strict=False):
            layers += [nn.Linear(fan_in, fan_out), activation(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.feature_dim = (in_features, *hidden)[-1]
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Maps ``[N, ...]``, with ``in_features`` numbers per row, to the last hidden layer ``[N, D]``."""
        return self.body(x.flatten(1))
