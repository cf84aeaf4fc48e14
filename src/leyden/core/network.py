"""The network contract: features, then a head."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Network", "Outputs"]


class Network(nn.Module, ABC):
    """A module that says where its features end: ``forward(x) = head(features(x))``.

    A subclass sets ``feature_dim`` and ``head`` in ``__init__`` and implements `features`. Methods can use, replace or
    duplicate either half.

    Attributes:
        feature_dim: D, the size of the last dimension of the features.
        head: maps features ``[N, D]`` to outputs ``[N, C]`` (``[N, T, C]`` for sequences of tokens).
    """

    feature_dim: int
    head: nn.Module

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Maps an input ``[N, ...]`` to features ``[N, D]`` (``[N, T, D]`` for sequences of tokens)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``head(features(x))``."""
        return self.head(self.features(x))


@dataclass
class Outputs:
    """What one forward pass of a `Method` gives to losses, callbacks and metrics.

    Attributes:
        logits: outputs of the network, ``[N, C]``.
        features: what went into the head, ``[N, D]``.
        taps: outputs of named inner modules, filled in by `FeatureTaps`.
        extra: whatever else a method or callback wants to hand on.
    """

    logits: Tensor
    features: Tensor | None = None
    taps: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
