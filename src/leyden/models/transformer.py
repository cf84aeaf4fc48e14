"""The pre-norm transformer block that `ViT` and `GPT` share, and its cache of keys and values.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with the norm in front of each branch (R. Xiong et al.,
"On Layer Normalization in the Transformer Architecture", ICML 2020, figure 1b).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.models._checks import check_dropout, check_positive
from leyden.nn.long_short_attention import long_short_attention

__all__ = ["KeyValueCache", "SelfAttention", "TransformerBlock"]


class KeyValueCache:
    """Keys and values of the tokens that one attention layer has seen so far.

    Args:
        max_length: tokens that it can hold.

    Attributes:
        length: tokens that it holds.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self._store: Tensor | None = None  # [2, N, heads, max_length, head_dim]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T tokens and returns all S.

        Args:
            key: ``[N, heads, T, head_dim]``.
            value: as ``key``.

        Returns:
            Keys and values, ``[N, heads, S, head_dim]`` each.
        """
        if self._store is None:
            self._store = key.new_empty(2, *key.shape[:2], self.max_length, key.shape[3])
        start, self.length = self.length, self.length + key.shape[2]
        self._store[0, :, :, start : self.length] = key
        self._store[1, :, :, start : self.length] = value
        return self._store[0, :, :, : self.length], self._store[1, :, :, : self.length]


class SelfAttention(nn.Module):
    """Multi-head self-attention with four linear layers ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    The number of heads in a pass is read off the projections' outputs, so that these may be split by columns over
    processes.

    Args:
        dim: D, a multiple of ``num_heads``.
        num_heads: attention heads.
        causal: each token sees only itself and the tokens before it.
        dropout: rate of dropout on the attention weights.
        bias: whether the linear layers have one.
        qk_norm: normalise each query and key by a layer norm over its head (M. Dehghani et al., "Scaling Vision
            Transformers to 22 Billion Parameters", ICML 2023), which has a scale and no bias.
        window: let all heads but the first ``global_heads`` see only the nearest tokens, by
            `leyden.nn.long_short_attention`; heads cannot be split over processes then. None: all heads see all tokens.
        global_heads: heads that see all tokens where there is a ``window``.

    Raises:
        ValueError: a size below 1, ``dim`` not a multiple of ``num_heads``, ``global_heads`` above it, or a rate
            outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        qk_norm: bool = False,
        window: int | None = None,
        global_heads: int = 1,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_heads=num_heads, window=1 if window is None else window)
        check_dropout(dropout)
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim} and num_heads={num_heads}")
        if not 0 <= global_heads <= num_heads:
            raise ValueError(f"global_heads must lie in 0..{num_heads} (num_heads), got {global_heads}")
        self.head_dim = dim // num_heads
        self.causal = causal
        self.dropout = dropout
        self.window = window
        self.global_heads = global_heads
        self.q_proj = nn.Linear(dim, dim, bias=bias)
        self.k_proj = nn.Linear(dim, dim, bias=bias)
        self.v_proj = nn.Linear(dim, dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=1e-6, bias=False) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6, bias=False) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Attends from each token.

        Args:
            x: ``[N, T, D]``.
            cache: tokens before ``x``, which are attended to as well; ``x`` is added to it.

        Returns:
            ``[N, T, D]``.
        """
        query, key, value = self._query(x), self._key(x), self._heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.append(key, value)
        return self.out_proj(self._attend(query, key, value).transpose(1, 2).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.window is not None:
            return long_short_attention(
                query,
                key,
                value,
                window=self.window,
                global_heads=self.global_heads,
                is_causal=self.causal,
                dropout_p=dropout,
            )
        num_queries, num_keys = query.shape[2], key.shape[2]
        mask = None
        if self.causal and 1 < num_queries < num_keys:  # the queries are the last of the keys
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=bool(self.causal and num_queries == num_keys),  # a tensor where TorchScript traces
        )

    def logits(self, x: Tensor) -> Tensor:
        """What `forward` takes the softmax of; it never holds these numbers itself.

        Args:
            x: ``[N, T, D]``.

        Returns:
            ``[N, heads, T, T]``, float32 at least; ``-inf`` where a key is not seen.
        """
        query, key = self._query(x), self._key(x)
        logits = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32))
        logits = logits / self.head_dim**0.5
        at = torch.arange(x.shape[1], device=x.device)
        distance = at.unsqueeze(-1) - at  # [T, T]
        if self.causal:
            logits = logits.masked_fill(distance < 0, -torch.inf)
        if self.window is not None:
            is_local = torch.arange(logits.shape[1], device=x.device).view(-1, 1, 1) >= self.global_heads
            logits = logits.masked_fill(is_local & (distance.abs() >= self.window), -torch.inf)
        return logits

    def _query(self, x: Tensor) -> Tensor:
        return self.q_norm(self._heads(self.q_proj(x)))

    def _key(self, x: Tensor) -> Tensor:
        return self.k_norm(self._heads(self.k_proj(x)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [N, heads, T, head_dim]


class TransformerBlock(nn.Module):
    """``x + attention(norm1(x))``, then ``x + fc2(gelu(fc1(norm2(x))))``.

    Args:
        dim: D.
        num_heads: attention heads.
        mlp_ratio: hidden units of the MLP, over D.
        causal: each token sees only itself and the tokens before it.
        dropout: rate of dropout on the attention weights and on the output of each branch.
        bias: whether linear layers and norms have one.
        norm_eps: epsilon of the layer norms.
        gelu: ``"none"`` for the exact GELU, ``"tanh"`` for its approximation.
        qk_norm: as in `SelfAttention`, like the two that follow.
        window: see there.
        global_heads: see there.

    Raises:
        ValueError: as `SelfAttention`, or an ``mlp_ratio`` that leaves no hidden unit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        norm_eps: float = 1e-5,
        gelu: Literal["none", "tanh"] = "none",
        qk_norm: bool = False,
        window: int | None = None,
        global_heads: int = 1,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(
            dim,
            num_heads,
            causal=causal,
            dropout=dropout,
            bias=bias,
            qk_norm=qk_norm,
            window=window,
            global_heads=global_heads,
        )
        hidden = int(dim * mlp_ratio)
        if hidden < 1:
            raise ValueError(f"mlp_ratio must give 1 or more hidden units, got {mlp_ratio} with dim={dim}")
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, bias=bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, bias=bias)
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.gelu = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Maps tokens ``[N, T, D]`` to ``[N, T, D]``; ``cache`` is that of `SelfAttention`."""
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.fc2(self.gelu(self.fc1(self.norm2(x)))))
