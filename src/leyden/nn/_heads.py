"""Heads of attention layers with one linear layer for queries, keys and values."""

from torch import Tensor

__all__ = ["check_heads", "merge_heads", "split_qkv"]


def check_heads(dim: int, num_heads: int) -> int:
    """Returns the size of a head; raises `ValueError` if ``dim`` cannot be split into so many."""
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"dim must be a multiple of num_heads, both 1 or more, got dim={dim} and num_heads={num_heads}"
        )
    return dim // num_heads


def split_qkv(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[N, H, T, D]`` of ``[N, T, 3 * H * D]``."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """``[N, T, H * D]`` of ``[N, H, T, D]``."""
    return x.transpose(1, 2).flatten(2)
