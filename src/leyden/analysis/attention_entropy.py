"""Entropy of attention (S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
2023, arXiv 2303.06296, section 3): rows that look at one key only make training unstable."""

import math

import torch
from torch import Tensor

__all__ = ["attention_entropy", "attention_entropy_bound"]


def attention_entropy(attn: Tensor) -> Tensor:
    """Entropy of the attention of a query, in nats, as a mean over batch and queries.

    Args:
        attn: attention weights after softmax, ``[N, H, T, S]``.

    Returns:
        ``[H]``, float32 at least.

    Raises:
        ValueError: another number of dimensions.
    """
    if attn.ndim != 4:
        raise ValueError(f"attn must have the shape [N, H, T, S], got {tuple(attn.shape)}")
    return torch.special.entr(attn.to(torch.promote_types(attn.dtype, torch.float32))).sum(-1).mean((0, 2))


def attention_entropy_bound(sigma: float, tokens: int) -> float:
    """The least entropy that a softmax over ``tokens`` logits can have, in nats (theorem 3.1).

    It is reached where one logit stands above the others, which are equal, and falls exponentially in ``sigma``.

    Args:
        sigma: bound of the Euclidean norm of the logits.
        tokens: T, 2 or more.

    Raises:
        ValueError: an argument is out of range.
    """
    if sigma < 0.0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    beta = math.exp(-sigma * math.sqrt(tokens / (tokens - 1)))
    total = 1.0 + (tokens - 1) * beta
    return math.log(total) + sigma * math.sqrt(tokens * (tokens - 1)) * beta / total
