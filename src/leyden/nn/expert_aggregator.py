"""Joins the features of experts (T. Zhong, Z. Chi, L. Gu, Y. Wang, Y. Yu, J. Tang, "Meta-DMoE: Adapting to Domain Shift
by Meta-Distillation from Mixture-of-Experts", 2022, arXiv 2210.03885; authors' code: n3il666/Meta-DMoE)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ExpertAggregator", "exclude_expert"]


class ExpertAggregator(nn.Module):
    """Joins the features of experts by attention among them, and takes their mean; their order does not count.

    Args:
        dim: D, a multiple of ``heads``.
        depth: number of blocks.
        heads: of attention.
        mlp_dim: hidden units of a block's MLP; ``2 * dim`` if None.
        dropout: rate in attention and MLP.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, dim: int, *, depth: int = 1, heads: int = 16, mlp_dim: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        mlp_dim = 2 * dim if mlp_dim is None else mlp_dim
        for name, size in (("dim", dim), ("depth", depth), ("heads", heads), ("mlp_dim", mlp_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.dim = dim
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_dim, dropout) for _ in range(depth))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features of K experts, ``[N, K, D]``, to ``[N, D]``."""
        for block in self.blocks:
            features = block(features)
        return features.mean(1)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.dropout(self.fc2(self.dropout(functional.gelu(self.fc1(self.norm2(x))))))


def exclude_expert(features: Tensor, index: Tensor) -> Tensor:
    """Leaves out one expert of each sample.

    Args:
        features: ``[N, K, D]``, K >= 2.
        index: number of the expert that is left out, int64 ``[N]`` in [0, K).

    Returns:
        ``[N, K - 1, D]``, the others in their order.

    Raises:
        ValueError: another shape, or fewer than 2 experts.
    """
    if features.ndim != 3 or features.shape[1] < 2 or index.shape != features.shape[:1]:
        raise ValueError(
            f"features must be [N, K, D] with K >= 2, and index [N], got {tuple(features.shape)} and "
            f"{tuple(index.shape)}"
        )
    kept = torch.arange(features.shape[1] - 1, device=features.device).expand(len(features), -1)  # [N, K - 1]
    kept = kept + (kept >= index.unsqueeze(-1))
    return features.gather(1, kept.unsqueeze(-1).expand(-1, -1, features.shape[2]))
