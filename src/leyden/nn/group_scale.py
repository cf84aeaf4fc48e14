"""Scales of CAST (W. Huang et al., "CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for
Large Language Models", 2025, arXiv 2509.25996): they make up for the size that weights lose by sparsity."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.nn.prunable_layers import stored_weight
from leyden.weights.prune import nm_mask

__all__ = ["GroupScale", "finalize_nm"]


class GroupScale(nn.Module):
    """``weight`` times a trained scale per output and group of inputs, for `torch.nn.utils.parametrize`.

    Args:
        out_features: rows of the weight.
        in_features: inputs (input channels) of the weight, a multiple of ``groups``.
        groups: scales per output.

    Raises:
        ValueError: ``in_features`` is no multiple of ``groups``.
    """

    def __init__(self, out_features: int, in_features: int, groups: int = 2) -> None:
        super().__init__()
        if groups < 1 or in_features % groups:
            raise ValueError(f"in_features must be a multiple of groups, got {in_features} and {groups}")
        self.scale = nn.Parameter(torch.ones(out_features, groups))

    def forward(self, weight: Tensor) -> Tensor:
        """Scales ``[out, in, ...]``."""
        groups = weight.unflatten(1, (self.scale.shape[1], -1))  # [out, groups, in / groups, ...]
        scale = self.scale.view(*self.scale.shape, *[1] * (weight.ndim - 1))
        return (groups * scale).flatten(1, 2)


@torch.no_grad()
def finalize_nm(module: nn.Module, n: int = 2, m: int = 4) -> list[str]:
    """Prunes the weights that `GroupScale` scales to N:M, and multiplies them with their scales; in place.

    Args:
        module: the network; its parametrizations are gone afterwards.
        n: entries of a group of ``m`` inputs that are kept, by their magnitudes before the scale.
        m: size of a group.

    Returns:
        Dotted names of the layers.

    Raises:
        ValueError: there is no scaled layer, or a weight cannot be cut into groups.
    """
    names = []
    for name, layer in list(module.named_modules()):
        parts = layer.parametrizations.weight if parametrize.is_parametrized(layer, "weight") else ()
        if any(isinstance(part, GroupScale) for part in parts):
            weight = stored_weight(layer)
            weight.mul_(nm_mask(weight, n, m))
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            names.append(name)
    if not names:
        raise ValueError(f"{type(module).__name__} has no layer with a GroupScale")
    return names
