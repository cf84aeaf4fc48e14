"""Ensemble that averages logits (K. Kim, S. Kotha, P. Liang, T. Hashimoto, "Pre-training under infinite compute", 2025,
arXiv 2509.14786, section 3)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from leyden.core.network import Network

__all__ = ["LogitEnsemble"]


class LogitEnsemble(Network):
    """Frozen copies of networks, always in eval mode, that answer with the mean of their logits.

    The mean of logits is a geometric mean of probabilities: its log loss is at most the mean of the members'. Features
    are those of the members side by side. `ConcatenatedFeatures` is what can learn on, for linear heads.

    Args:
        networks: trained members, with outputs of the same shape.

    Raises:
        ValueError: there is no member.
    """

    def __init__(self, networks: Network | Sequence[Network]) -> None:
        super().__init__()
        networks = [networks] if isinstance(networks, Network) else list(networks)
        if not networks:
            raise ValueError("networks must hold at least one network, got none")
        members = [deepcopy(network) for network in networks]
        self.feature_dim = sum(member.feature_dim for member in members)
        self.head = _MeanOfHeads([(member.feature_dim, member.head) for member in members])
        for member in members:
            member.head = nn.Identity()
        self.members = nn.ModuleList(members)
        self.requires_grad_(False).eval()

    def features(self, x: Tensor, cache: Sequence[Any] | None = None) -> Tensor:
        """Features ``[..., D]``; a ``cache`` is that of `new_cache`."""
        if cache is None:
            return torch.cat([cast(Network, member).features(x) for member in self.members], dim=-1)
        members = zip(self.members, cache, strict=True)
        return torch.cat([cast(Any, member).features(x, its_own) for member, its_own in members], dim=-1)

    def new_cache(self) -> list[Any]:
        """An empty cache for `features`, one part per member; for members that have such."""
        return [cast(Any, member).new_cache() for member in self.members]

    def train(self, mode: bool = True) -> "LogitEnsemble":
        """Stays in eval mode."""
        return super().train(False)


class _MeanOfHeads(nn.Module):
    """Cuts features into those of the members, and takes the mean of what their heads make of them."""

    def __init__(self, heads: list[tuple[int, nn.Module]]) -> None:
        super().__init__()
        self.sizes = [size for size, _ in heads]
        self.heads = nn.ModuleList(head for _, head in heads)

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self.sizes, dim=-1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)]).mean(0)
