"""Attention with normalised queries and keys (M. Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters", ICML 2023; M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities",
2023, arXiv 2309.14322, section 3.1.1): its logits are bounded, however large the weights grow."""

from torch import Tensor, nn
from torch.nn import functional

from leyden.nn._heads import check_heads, merge_heads, split_qkv

__all__ = ["QKNormAttention", "qk_norm_attention"]


def qk_norm_attention(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, *, eps: float = 1e-6, is_causal: bool = False
) -> Tensor:
    """Scaled dot-product attention of queries and keys that went through a layer norm over their head, without bias.

    Args:
        q: queries, ``[N, H, T, D]``.
        k: keys, ``[N, H, S, D]``.
        v: values, ``[N, H, S, D]``.
        q_weight: scale of the queries' norm, ``[D]``, shared by the heads.
        k_weight: scale of the keys' norm, ``[D]``.
        eps: of the norms.
        is_causal: each query sees only keys up to its own position.

    Returns:
        ``[N, H, T, D]``.
    """
    q = functional.layer_norm(q, q.shape[-1:], q_weight, eps=eps)
    k = functional.layer_norm(k, k.shape[-1:], k_weight, eps=eps)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


class QKNormAttention(nn.Module):
    """Multi-head self-attention by `qk_norm_attention`, with linear layers ``qkv`` and ``proj``.

    Args:
        dim: a multiple of ``num_heads``.
        num_heads: attention heads.
        bias: whether the linear layers have one.
        is_causal: each token sees only itself and the tokens before it.

    Raises:
        ValueError: a size is below 1, or ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool = False, is_causal: bool = False) -> None:
        super().__init__()
        head_dim = check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-6, bias=False)
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6, bias=False)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``[N, T, dim]`` to ``[N, T, dim]``."""
        q, k, v = split_qkv(self.qkv(x), self.num_heads)
        attended = qk_norm_attention(
            q, k, v, self.q_norm.weight, self.k_norm.weight, eps=self.q_norm.eps, is_causal=self.is_causal
        )
        return self.proj(merge_heads(attended))
