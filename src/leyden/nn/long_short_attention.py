"""Long short attention (S. Hajra, "Short-Range Dependency Effects on Transformer Instability and a Decomposed Attention
Solution", 2025, arXiv 2505.15548): a few heads look at all tokens, the others at the nearest, so that dense short-range
dependencies need no large logits.

There is no code by the author. That the global heads come first and that the window counts the token itself is
unverified.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.nn._heads import check_heads, merge_heads, split_qkv

__all__ = ["LongShortAttention", "long_short_attention"]


def long_short_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int = 100,
    global_heads: int = 1,
    is_causal: bool = True,
    dropout_p: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention whose first heads see all keys, and whose others see those nearer than ``window``.

    The number of logits of a local head grows with ``T * window``, not with ``T^2``.

    Args:
        q: queries, ``[N, H, T, D]``: the last T of the S positions.
        k: keys, ``[N, H, S, D]``.
        v: values, ``[N, H, S, D]``.
        window: a local query at i sees keys at j with ``0 <= i - j < window``, or ``|i - j| < window``.
        global_heads: heads that see all keys.
        is_causal: no query sees a key after it.
        dropout_p: rate of dropout on the attention weights.

    Returns:
        ``[N, H, T, D]``.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(q.shape[1], window, global_heads)
    num_queries, num_keys = q.shape[2], k.shape[2]
    parts = []
    if global_heads:
        everything = [part[:, :global_heads] for part in (q, k, v)]
        parts.append(_banded(everything[0], everything[1], everything[2], num_keys, is_causal, dropout_p))
    if global_heads < q.shape[1]:
        q, k, v = (part[:, global_heads:] for part in (q, k, v))
        if num_queries == num_keys and num_keys > (2 if is_causal else 3) * window:
            parts.append(_blockwise(q, k, v, window, is_causal, dropout_p))
        else:
            start = max(0, num_keys - num_queries - window + 1)  # no query sees the keys before
            parts.append(_banded(q, k[:, :, start:], v[:, :, start:], window, is_causal, dropout_p))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class LongShortAttention(nn.Module):
    """Multi-head self-attention by `long_short_attention`, with linear layers ``qkv`` and ``proj``.

    Args:
        dim: a multiple of ``num_heads``.
        num_heads: attention heads; the paper has one global among twelve.
        window: how far a local head looks, in tokens, its own counted.
        global_heads: heads that see all tokens, the first ones.
        is_causal: each token sees only itself and tokens before it.
        bias: whether the linear layers have one.

    Raises:
        ValueError: an argument is out of range, or ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: int = 100,
        global_heads: int = 1,
        is_causal: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        _check(num_heads, window, global_heads)
        self.num_heads = num_heads
        self.window = window
        self.global_heads = global_heads
        self.is_causal = is_causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``[N, T, dim]`` to ``[N, T, dim]``."""
        q, k, v = split_qkv(self.qkv(x), self.num_heads)
        attended = long_short_attention(
            q, k, v, window=self.window, global_heads=self.global_heads, is_causal=self.is_causal
        )
        return self.proj(merge_heads(attended))


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, is_causal: bool, dropout_p: float) -> Tensor:
    """All logits, of which a mask leaves a band."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    if window >= num_keys and (not is_causal or num_queries in (1, num_keys)):
        is_causal = bool(is_causal and num_queries > 1)  # a tensor where TorchScript traces
        return functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, dropout_p=dropout_p)
    at = torch.arange(num_keys, device=q.device)
    mask = _sees(at[num_keys - num_queries :].unsqueeze(-1) - at, window, is_causal)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def _blockwise(q: Tensor, k: Tensor, v: Tensor, window: int, is_causal: bool, dropout_p: float) -> Tensor:
    """Blocks of ``window`` queries, each with the keys of its own block and of those beside it."""
    num_heads, length = q.shape[1:3]
    padding = -length % window
    num_blocks = (length + padding) // window
    after = 0 if is_causal else window
    size = 2 * window + after
    q = functional.pad(q, (0, 0, 0, padding)).flatten(0, 1).unflatten(1, (num_blocks, window))  # [N * H, B, W, D]
    k, v = (
        functional.pad(part, (0, 0, window, padding + after)).flatten(0, 1).unfold(1, size, window).transpose(-1, -2)
        for part in (k, v)
    )  # [N * H, B, size, D]
    rows = torch.arange(window, device=q.device)
    columns = torch.arange(size, device=q.device) - window  # counted from the block's first query
    position = columns + window * torch.arange(num_blocks, device=q.device).unsqueeze(-1)  # [B, size]
    is_token = (position >= 0) & (position < length)
    mask = _sees(rows.unsqueeze(-1) - columns, window, is_causal) & is_token.unsqueeze(1)  # [B, W, size]
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    return attended.flatten(1, 2)[:, :length].unflatten(0, (-1, num_heads))


def _sees(distance: Tensor, window: int, is_causal: bool) -> Tensor:
    return (distance >= 0) & (distance < window) if is_causal else distance.abs() < window


def _check(num_heads: int, window: int, global_heads: int) -> None:
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if not 0 <= global_heads <= num_heads:
        raise ValueError(f"global_heads must lie in 0..{num_heads} (the heads), got {global_heads}")
