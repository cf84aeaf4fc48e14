"""Noise on hidden states that follows their spread (A. Khadangi et al., "Noise Augmented Fine Tuning for Mitigating
Hallucinations in Large Language Models", 2025, arXiv 2504.03302; authors' code: akhadangi/NoiseFiT)."""

import torch
from torch import Tensor

__all__ = ["adaptive_noise"]

EPS = 1e-6


def adaptive_noise(
    hidden: Tensor,
    *,
    base_std: float | Tensor,
    beta: float = 0.1,
    logits: Tensor | None = None,
    normal: Tensor | None = None,
) -> Tensor:
    """Adds Gaussian noise whose size is ``base_std * mad * weight * factor`` to each number of each token.

    ``mad`` is the median distance of a token's numbers from their median, ``weight = exp(-beta distance / mad)`` is
    largest next to it, and ``factor`` is ``exp`` of the token's variance over the mean variance of all tokens, or of
    the entropy of its logits, where these are given; at most 5. Gradients flow through all of them.

    Args:
        hidden: states of tokens, ``[..., D]``, D >= 2.
        base_std: 0 leaves the states as they are.
        beta: of the weight.
        logits: ``[..., V]``.
        normal: standard normal numbers of the shape of ``hidden``; drawn from PyTorch's global generator if None.

    Returns:
        The shape and dtype of ``hidden``.

    Raises:
        ValueError: ``hidden`` or ``normal`` has another shape.
    """
    if hidden.ndim < 2 or hidden.shape[-1] < 2:
        raise ValueError(f"hidden must have the shape [..., D] with D >= 2, got {tuple(hidden.shape)}")
    if normal is not None and normal.shape != hidden.shape:
        raise ValueError(f"normal must have the shape of hidden, {tuple(hidden.shape)}, got {tuple(normal.shape)}")
    h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    distance = (h - h.median(-1, keepdim=True).values).abs()  # of the two middle ones the lower, as PyTorch has it
    norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    mad = torch.maximum(distance.median(-1, keepdim=True).values, EPS * norm)  # [..., 1]
    weight = torch.exp(-beta * distance / (mad + EPS))
    if logits is None:
        variance = h.var(-1, keepdim=True)
        factor = torch.exp(variance / (variance.mean() + EPS))
    else:
        p = logits.softmax(-1, dtype=h.dtype)
        factor = torch.exp(-(p * torch.log(p + EPS)).sum(-1, keepdim=True))
    z = torch.randn_like(h) if normal is None else normal
    return (h + z * base_std * mad * weight * factor.clamp(max=5.0)).to(hidden.dtype)
