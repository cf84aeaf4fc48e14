"""Deep interest network (G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2017, arXiv
1706.06978, figure 2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_positive
from leyden.nn.dice import Dice
from leyden.nn.local_activation_pool import LocalActivationPool

__all__ = ["DIN"]


class DIN(Network):
    """Predicts whether a user clicks a candidate, from the items clicked before.

    One embedding serves history and candidate. The history is pooled to one vector, which goes with the candidate and
    their product (as in the authors' code) through layers with `leyden.nn.Dice` or PReLU.

    Args:
        vocab_size: V, number of ids with that of padding, 0.
        num_outputs: C.
        dim: D, size of an embedded item.
        hidden: sizes of the hidden layers behind the pooling.
        pooling: `leyden.nn.LocalActivationPool`, or the mean of the history.
        activation: behind each hidden layer.

    Raises:
        ValueError: a size is below 1, or there is no such pooling or activation.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int = 2,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (80, 40),
        pooling: Literal["local_activation", "mean"] = "local_activation",
        activation: Literal["dice", "prelu"] = "dice",
    ) -> None:
        super().__init__()
        check_positive(vocab_size=vocab_size, num_outputs=num_outputs, dim=dim, hidden=min(hidden, default=1))
        if pooling not in ("local_activation", "mean"):
            raise ValueError(f"pooling must be 'local_activation' or 'mean', got {pooling!r}")
        if activation not in ("dice", "prelu"):
            raise ValueError(f"activation must be 'dice' or 'prelu', got {activation!r}")
        self.vocab_size = vocab_size
        self.items = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.pool = LocalActivationPool(dim) if pooling == "local_activation" else None
        sizes = (3 * dim, *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(fan_in, fan_out), Dice(fan_out) if activation == "dice" else nn.PReLU(fan_out)]
        self.body = nn.Sequential(*layers)
        self.feature_dim = sizes[-1]
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """Maps ids ``[N, 1 + T]``, the candidate and then the history (0 where there is none), to ``[N, F]``.

        Raises:
            ValueError: there is no history.
        """
        if x.ndim != 2 or x.shape[1] < 2:
            raise ValueError(f"x must hold a candidate and a history, [N, 1 + T], got shape {tuple(x.shape)}")
        embedded = self.items(x)
        candidate, history, mask = embedded[:, 0], embedded[:, 1:], x[:, 1:] != 0
        if self.pool is not None:
            pooled = self.pool(candidate, history, mask)  # [N, D]
        else:
            pooled = history.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # padding is embedded as zeros
        return self.body(torch.cat([pooled, candidate, pooled * candidate], -1))
