"""GPT-2 (A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive
from leyden.models._init import init_weights
from leyden.models.transformer import KeyValueCache, TransformerBlock
from leyden.nn.generate_tokens import generate_tokens

__all__ = ["GPT"]


class GPT(Network):
    """GPT-2: a causal pre-norm transformer with learned positions and tanh-approximated GELU.

    Linear layers and embeddings start from N(0, 0.02^2), those that write into the residual stream from a standard
    deviation smaller by ``sqrt(2 * depth)``; biases start from zero.

    Args:
        vocab_size: V.
        context: the longest sequence, in tokens.
        dim: D, a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden units of each MLP, over D.
        dropout: rate of dropout after the positions, on attention weights, and on each branch of a block.
        tie_weights: the head's weight is the token embedding's.
        bias: whether the linear layers and norms of the blocks have one; the head has none.
        qk_norm: normalise queries and keys, as `leyden.models.SelfAttention` says.
        window: let all heads but the first ``global_heads`` see only so many of the last tokens (long short attention);
            None: all heads see all.
        global_heads: heads that see all tokens where there is a ``window``.

    Raises:
        ValueError: a size below 1, ``dim`` not a multiple of ``num_heads``, or a rate outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        *,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        tie_weights: bool = True,
        bias: bool = True,
        qk_norm: bool = False,
        window: int | None = None,
        global_heads: int = 1,
    ) -> None:
        super().__init__()
        check_positive(vocab_size=vocab_size, context=context, dim=dim, depth=depth)
        check_dropout(dropout)
        self.vocab_size = vocab_size
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(context, dim)
        self.dropout = nn.Dropout(dropout)
        blocks = [
            TransformerBlock(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                causal=True,
                dropout=dropout,
                bias=bias,
                gelu="tanh",
                qk_norm=qk_norm,
                window=window,
                global_heads=global_heads,
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.feature_dim = dim
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.token_embedding.weight
        self.apply(init_weights)
        for block in blocks:
            for layer in (block.attention.out_proj, block.fc2):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))

    def features(self, x: Tensor, cache: Sequence[KeyValueCache] | None = None) -> Tensor:
        """Hidden states after the last norm.

        Args:
            x: tokens, int64 ``[N, T]``.
            cache: keys and values of the tokens before ``x``, from `new_cache`; those of ``x`` are added to it.

        Returns:
            ``[N, T, D]``.

        Raises:
            ValueError: more tokens, with those in the cache, than ``context``.
        """
        start = cache[0].length if cache is not None else 0
        end = start + x.shape[1]
        if end > self.context:
            raise ValueError(f"a sequence may have {self.context} tokens (context), got {end}")
        positions = torch.arange(start, end, device=x.device)
        hidden = self.dropout(self.token_embedding(x) + self.position_embedding(positions))  # [N, T, D]
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, None if cache is None else cache[number])
        return self.norm(hidden)

    def new_cache(self) -> list[KeyValueCache]:
        """An empty cache for `features`, one part per block."""
        return [KeyValueCache(self.context) for _ in self.blocks]

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples the tokens that follow; see `leyden.nn.generate_tokens`.

        Dropout acts as the module's mode says: call ``eval()`` first. Positions are learned up to ``context``
        only: a longer sequence is refused, not cut.

        Args:
            tokens: beginnings of equal length, int64 ``[N, T]``, T >= 1.
            max_new_tokens: M, tokens to add to each row.
            temperature: what logits are divided by; 0 takes the likeliest token.
            top_k: sample from this many likeliest tokens only; from all if None.
            generator: source of random numbers, on the device of ``tokens``; PyTorch's global one if None.

        Returns:
            Beginnings and added tokens, int64 ``[N, T + M]``.

        Raises:
            ValueError: T + M is more than ``context``, or an argument is out of range.
        """
        if tokens.shape[-1] + max_new_tokens > self.context:
            raise ValueError(
                f"tokens and max_new_tokens may make {self.context} tokens (context), "
                f"got {tokens.shape[-1]} + {max_new_tokens}"
            )
        return generate_tokens(self, tokens, max_new_tokens, temperature=temperature, top_k=top_k, generator=generator)
