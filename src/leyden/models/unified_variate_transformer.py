"""Unified-variate transformer (J. Yang et al., "Revisiting Multivariate Time Series Forecasting with Missing Values",
2025, arXiv 2509.23494): one attention over the patches of all variates.

The authors' blocks (Muyiiiii/CRIB) use one projection for queries, keys and values, and norms in an order of their own;
their convolutions have weight norm, and fixed positions are added to the values. The blocks here are those of `ViT`
and positions are learned.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive
from leyden.models.transformer import TransformerBlock

__all__ = ["UnifiedVariateTransformer"]


class UnifiedVariateTransformer(Network):
    """Forecasts several variates from a window in which values are missing, which are zeros.

    Each window is normalised per variate and scaled back at the end (statistics include the zeros). Convolutions make
    tokens of its patches, each with those before it of the same variate; a transformer lets all tokens see each other.
    Features are the D numbers of each of a variate's P patches, and its mean and scale.

    Args:
        num_variates: V.
        input_length: T, steps of a window, a multiple of ``patch_length``.
        horizon: H, steps to forecast.
        patch_length: steps of a patch.
        dim: D, a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        dropout: rate of dropout in convolutions and blocks.

    Raises:
        ValueError: a size is below 1 or no multiple of the one named above, or a rate outside [0, 1).
    """

    def __init__(
        self,
        num_variates: int,
        input_length: int = 24,
        horizon: int = 24,
        *,
        patch_length: int = 8,
        dim: int = 32,
        depth: int = 3,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(num_variates=num_variates, input_length=input_length, horizon=horizon)
        check_positive(patch_length=patch_length, dim=dim, depth=depth)
        check_dropout(dropout)
        if input_length % patch_length:
            raise ValueError(
                f"input_length must be a multiple of patch_length, got {input_length} with patch_length={patch_length}"
            )
        num_patches = input_length // patch_length
        self.shape = (input_length, num_variates)
        self.patch_length = patch_length
        self.embedding = nn.Sequential(
            _TemporalBlock(patch_length, 2 * dim, 1, dropout), _TemporalBlock(2 * dim, dim, 2, dropout)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, num_variates, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature_dim = num_patches * dim + 2
        self.head = _ForecastHead(num_patches * dim, dim, horizon)

    def features(self, x: Tensor) -> Tensor:
        """Maps windows ``[N, T, V]`` to ``[N, V, P * D + 2]``.

        Raises:
            ValueError: windows of another length or number of variates.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape [N, {self.shape[0]}, {self.shape[1]}], got {tuple(x.shape)}")
        mean = x.mean(1, keepdim=True)  # [N, 1, V]
        scale = (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        patches = ((x - mean) / scale).unflatten(1, (-1, self.patch_length))  # [N, P, L, V]
        tokens = self.embedding(patches.permute(0, 2, 3, 1)).permute(0, 3, 2, 1)  # [N, P, V, D]
        tokens = (tokens + self.positions).flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens).unflatten(1, self.positions.shape[:2]).transpose(1, 2).flatten(2)  # [N, V, P * D]
        return torch.cat([tokens, mean.transpose(1, 2), scale.transpose(1, 2)], -1)


class _ForecastHead(nn.Module):
    """Maps the features of each variate to its future, in the variate's own scale."""

    def __init__(self, in_features: int, hidden: int, horizon: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, horizon))

    def forward(self, features: Tensor) -> Tensor:
        tokens, mean, scale = features[..., :-2], features[..., -2:-1], features[..., -1:]
        return (self.body(tokens) * scale + mean).transpose(1, 2)  # [N, H, V]


class _TemporalBlock(nn.Module):
    """Two causal convolutions along the last dimension, ``[N, C, V, P]``, and the input beside them."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv1 = nn.Conv2d(in_channels, out_channels, (1, 3), dilation=(1, dilation))
        self.conv2 = nn.Conv2d(out_channels, out_channels, (1, 3), dilation=(1, dilation))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.conv1, self.conv2):
            y = self.dropout(conv(functional.pad(y, (self.padding, 0))).relu())
        return y + self.shortcut(x)
