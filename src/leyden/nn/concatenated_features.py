"""Concatenated representations (CAT: J. Zhang, L. Bottou, "Learning useful representations for shifting tasks and
distributions", 2022, arXiv 2212.07346, section 2).

Networks that differ only in their seed learn different features, of which one network that is trained longer, or is
wider, has fewer: a new task is learned better from those of all. Original code: TjuJianyu/RRL.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from leyden.core.network import Network
from leyden.weights.concatenate_heads import concatenate_heads

__all__ = ["ConcatenatedFeatures"]


class ConcatenatedFeatures(Network):
    """The features of several networks side by side, and one head on them.

    Args:
        networks: a trained member or several, of which this has copies; the sizes of their features ``[N, D_i]`` may
            differ.
        num_classes: outputs of a new linear head; None starts from the members' heads, and the logits are the mean of
            theirs.
        freeze: whether only the head learns; the members then run in eval mode.
        batch_norm: whether a new head begins with a batch norm, so that features of all scales weigh alike.

    Raises:
        ValueError: there is no member; or a head is to start from those of the members, but begins with a batch norm,
            or theirs are not linear or have different outputs.
    """

    def __init__(
        self,
        networks: Network | Sequence[Network],
        num_classes: int | None = None,
        *,
        freeze: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        networks = [networks] if isinstance(networks, Network) else list(networks)
        if not networks:
            raise ValueError("networks must hold at least one network, got none")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if batch_norm and num_classes is None:
            raise ValueError("batch_norm needs a new head: give num_classes")
        self.freeze = freeze
        self.feature_dim = sum(network.feature_dim for network in networks)
        self.head = _joined_head(networks) if num_classes is None else nn.Linear(self.feature_dim, num_classes)
        if batch_norm:
            self.head = nn.Sequential(nn.BatchNorm1d(self.feature_dim), self.head)
        self.members = nn.ModuleList(deepcopy(network) for network in networks)
        for member in self.members:
            member.head = nn.Identity()
        if freeze:
            self.members.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Maps inputs to features ``[N, D]``, those of the first member first."""
        if self.freeze:
            self.members.eval()  # not in train(): Lightning warns of what is in eval mode when a fit begins
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return torch.cat([cast(Network, member).features(x) for member in self.members], dim=-1)


def _joined_head(networks: Sequence[Network]) -> nn.Linear:
    heads: list[tuple[Tensor, Tensor]] = []
    for network in networks:
        head = network.head
        if not isinstance(head, nn.Linear):
            raise ValueError(f"networks must have heads that are an nn.Linear, got a {type(head).__name__}")
        heads.append((head.weight, head.weight.new_zeros(head.out_features) if head.bias is None else head.bias))
    weight, bias = concatenate_heads(heads)
    joined = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
    joined.load_state_dict({"weight": weight, "bias": bias})
    return joined
