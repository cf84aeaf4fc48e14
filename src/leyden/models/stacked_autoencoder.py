"""Stacked denoising autoencoder with a linear head on its code."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive

__all__ = ["StackedAutoencoder"]


class StackedAutoencoder(Network):
    """Linear encoder layers with leaky ReLU (the last with tanh), their mirror image as decoder, and a linear head.

    The features are the code. `encode` and `decode` give all layers, for losses that compare them one by one.

    Args:
        in_features: numbers in one input; more dimensions are flattened.
        num_outputs: C, such as the number of clusters.
        hidden: sizes of the encoder's layers; the last is that of the code.
        dropout: rate at which `encode`, if asked for noise, drops inputs and hidden units, but never the code.

    Raises:
        ValueError: a size below 1, no layer, or a rate outside [0, 1).
    """

    head: nn.Linear

    def __init__(
        self, in_features: int, num_outputs: int, hidden: Sequence[int] = (128, 10), *, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_outputs=num_outputs)
        check_dropout(dropout)
        if min(hidden, default=0) < 1:
            raise ValueError(f"hidden must hold one or more sizes of 1 or more, got {tuple(hidden)}")
        sizes = [in_features, *hidden]
        self.encoder = _layers(sizes, nn.Tanh())
        self.decoder = _layers(sizes[::-1], nn.Identity())
        self.noise = nn.Dropout(dropout)
        self.feature_dim = sizes[-1]
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Maps ``[N, ...]`` to the code ``[N, D]``, without noise."""
        return self.encode(x)[-1]

    def encode(self, x: Tensor, *, noise: bool = False) -> list[Tensor]:
        """Returns the flattened input and the output of every encoder layer; in training with dropout, if asked."""
        layers = [x.flatten(1)]
        for layer in self.encoder:
            layers.append(layer(self.noise(layers[-1]) if noise else layers[-1]))
        return layers

    def decode(self, code: Tensor) -> list[Tensor]:
        """Returns reconstructions of all layers but the code, in the order of `encode`: the input stands first."""
        layers = []
        for layer in self.decoder:
            code = layer(code)
            layers.append(code)
        return layers[::-1]


def _layers(sizes: Sequence[int], last: nn.Module) -> nn.ModuleList:
    """Linear layers between the sizes, each but the last with leaky ReLU."""
    activations = [*(nn.LeakyReLU(0.01) for _ in sizes[2:]), last]
    pairs = zip(pairwise(sizes), activations, strict=True)
    return nn.ModuleList(nn.Sequential(nn.Linear(*pair), activation) for pair, activation in pairs)
