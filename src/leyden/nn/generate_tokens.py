"""Sampling of tokens, one after the other."""

from typing import Any, cast

import torch
from torch import Tensor

from leyden.core.network import Network

__all__ = ["generate_tokens"]


@torch.no_grad()
def generate_tokens(
    network: Network,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples the tokens that follow, with a cache of what the network has computed of those before.

    The last token sampled is not given to the network, whose context may be one token shorter than the result. Dropout
    acts as the network's mode says.

    Args:
        network: its ``features`` take a ``cache`` from its ``new_cache``, as those of `leyden.models.GPT` do.
        tokens: beginnings of equal length, int64 ``[N, T]``, T >= 1.
        max_new_tokens: M, tokens to add to each row.
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_k: sample from this many likeliest tokens only; from all if None.
        generator: source of random numbers, on the device of ``tokens``; PyTorch's global one if None.

    Returns:
        Beginnings and added tokens, int64 ``[N, T + M]``.

    Raises:
        ValueError: an argument is out of range, or the network has no cache.
    """
    if not hasattr(network, "new_cache"):
        raise ValueError(f"network must have new_cache, and features that take a cache, got a {type(network).__name__}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens must have the shape [N, T] with T >= 1, got {tuple(tokens.shape)}")
    if temperature < 0.0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    caching = cast(Any, network)
    cache = caching.new_cache()
    added = tokens
    for _ in range(max_new_tokens):
        logits = caching.head(caching.features(added, cache)[:, -1])  # [N, V]
        added = _sample(logits, temperature, top_k, generator)
        tokens = torch.cat([tokens, added], dim=1)
    return tokens


def _sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if top_k is not None and not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must be from 1 to {logits.shape[-1]} (vocab_size), got {top_k}")
    if temperature == 0.0:
        return logits.argmax(-1, keepdim=True)  # [N, 1]
    if top_k is None:
        return torch.multinomial((logits / temperature).softmax(-1, dtype=torch.float32), 1, generator=generator)
    logits, likeliest = logits.topk(top_k)  # [N, K]
    chosen = torch.multinomial((logits / temperature).softmax(-1, dtype=torch.float32), 1, generator=generator)
    return likeliest.gather(-1, chosen)
