"""The network of stream-x agents (M. Elsayed, G. Vasan, A. R. Mahmood, "Streaming Deep Reinforcement Learning Finally
Works", 2024, arXiv 2410.14606)."""

from collections.abc import Sequence

from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive
from leyden.nn.sparse_init import sparse_init_

__all__ = ["StreamMLP"]


class StreamMLP(Network):
    """Multilayer perceptron with sparse initial weights, and a layer norm without weights before each leaky ReLU.

    Args:
        in_features: numbers in one input.
        num_outputs: C.
        hidden: sizes of the hidden layers.
        sparsity: share of the initial weights of each unit that are 0; biases all are.

    Raises:
        ValueError: a size below 1, or ``sparsity`` outside of [0, 1].
    """

    def __init__(
        self, in_features: int, num_outputs: int = 1, hidden: Sequence[int] = (128, 128), *, sparsity: float = 0.9
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_outputs=num_outputs)
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden must hold sizes of 1 or more, got {tuple(hidden)}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((in_features, *hidden), hidden, strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out, elementwise_affine=False), nn.LeakyReLU()]
        self.body = nn.Sequential(*layers)
        self.feature_dim = (in_features, *hidden)[-1]
        self.head = nn.Linear(self.feature_dim, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                sparse_init_(module.weight, sparsity)
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """Maps ``[N, ...]``, with ``in_features`` numbers per row, to the last hidden layer ``[N, D]``."""
        return self.body(x.flatten(1))
