"""Global recycle network (W. Tang and others, "Multiple Instance Learning Framework with Masked Hard Instance Mining
for Gigapixel Histopathology Image Analysis", 2025, arXiv 2509.11526; authors' code: DearCaat/MHIM-MIL).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.distributed import all_reduce_mean
from leyden.core.random import uniform
from leyden.nn._smallest import smallest

__all__ = ["GlobalRecycle"]

_KEPT = 0xB2  # stream of random numbers, other than those of augmentation and of hard instances


class GlobalRecycle(nn.Module):
    """Replaces some instances of a bag by a few tokens that sum them up.

    The tokens are what queries, averages of the tokens of earlier bags, find in the instances. The queries move with
    each forward pass in training mode, as in the authors' code, not with each optimizer step: towards the mean over the
    bags of all processes.

    Args:
        dim: D.
        num_tokens: k.
        heads: of the attention.
        head_dim: size of each.
        momentum: share of the old queries that a forward pass keeps.
        keep_ratio: share of the instances that stay as they are in training.
        dropout: rate, of attention weights and of tokens.

    Attributes:
        query: ``[1, k, D]``.

    Raises:
        ValueError: an argument is out of range.
    """

    query: Tensor

    def __init__(
        self,
        dim: int,
        *,
        num_tokens: int = 1,
        heads: int = 8,
        head_dim: int = 64,
        momentum: float = 0.9998,
        keep_ratio: float = 0.2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, count in {"dim": dim, "num_tokens": num_tokens, "heads": heads, "head_dim": head_dim}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, share in {"momentum": momentum, "keep_ratio": keep_ratio, "dropout": dropout}.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        self.heads, self.momentum, self.keep_ratio = heads, momentum, keep_ratio
        self.norm = nn.LayerNorm(dim)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)
        limit = (6.0 / (3 * 16 * 16 + dim)) ** 0.5  # of the authors' code: that of a layer from patches of an image
        self.register_buffer("query", torch.empty(1, num_tokens, dim).uniform_(-limit, limit))

    def recycle(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sums up instances; does not move the queries.

        Args:
            x: ``[B, N, D]``.
            mask: which to look at, bool ``[B, N]``; a bag without any gives the bias of ``to_out``.

        Returns:
            ``[B, k, D]``.
        """
        query = self.query.clone()  # the backward pass needs it as it is now, and forward moves it
        q = self.to_q(self.norm(query)).expand(len(x), -1, -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, *self.to_kv(self.norm(x)).chunk(2, -1))
        )  # [B, H, k or N, head_dim]
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights * mask[:, None, None]
        summary = self.dropout(weights) @ v
        return self.dropout(self.to_out(summary.transpose(1, 2).flatten(-2)))

    def forward(self, x: Tensor, mask: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Instances, and tokens behind them.

        Args:
            x: ``[B, N, D]``.
            mask: which instances there are, bool ``[B, N]``.
            keys: of the draws in training, one per bag, int64 ``[B]``; see `leyden.core.random`.

        Returns:
            ``[B, N + k, D]``, and which of them are there, bool ``[B, N + k]``: in training a random share of the
            instances and the tokens of the others; in evaluation all, and the tokens of all.
        """
        kept = summed = mask
        if self.training:
            noise = uniform(keys, x.shape[1], stream=_KEPT)
            kept = smallest(noise, mask, (self.keep_ratio * mask.sum(-1).double()).floor())
            summed = mask & ~kept
        tokens = self.recycle(x, summed)
        if self.training:
            with torch.no_grad():
                mean = all_reduce_mean(tokens.to(self.query.dtype).mean(0, keepdim=True))
                self.query.lerp_(mean, 1.0 - self.momentum)
        return torch.cat([x, tokens], 1), functional.pad(kept, (0, tokens.shape[1]), value=True)
