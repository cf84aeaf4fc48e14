"""What tells that attention is about to become unstable: its largest logit, and its entropy.

M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv 2309.14322,
section 3.1.1; S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023, arXiv
2303.06296, section 3.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["AttentionEntropy", "MaxAttentionLogit"]


class AttentionEntropy(Metric):
    """Entropy of the attention of a query, in nats, per head: a mean over all queries seen.

    ``update(attn)`` takes attention weights after softmax, ``[N, H, T, S]``; ``compute`` returns ``[H]``.

    Args:
        num_heads: H.
        **kwargs: as in `torchmetrics.Metric`.

    Raises:
        ValueError: ``num_heads`` is below 1.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {num_heads}")
        self.num_heads = num_heads
        self.add_state("total", torch.zeros(num_heads), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, attn: Tensor) -> None:
        """Adds the queries of a batch."""
        if attn.ndim != 4 or attn.shape[1] != self.num_heads:
            raise ValueError(f"attn must have the shape [N, {self.num_heads}, T, S], got {tuple(attn.shape)}")
        self.total += torch.special.entr(attn.detach().float()).sum((0, 2, 3))
        self.count += attn.shape[0] * attn.shape[2]

    def compute(self) -> Tensor:
        """Returns the mean per head."""
        return self.total / self.count


class MaxAttentionLogit(Metric):
    """Largest attention logit seen: ``q k^T / sqrt(d)``, before softmax; masked ones are ``-inf``.

    ``update(logits)`` takes ``[N, H, T, S]``; ``compute`` returns a scalar.

    Args:
        **kwargs: as in `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    largest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("largest", torch.tensor(-torch.inf), dist_reduce_fx="max")

    def update(self, logits: Tensor) -> None:
        """Adds a batch."""
        self.largest = torch.maximum(self.largest, logits.detach().float().max())

    def compute(self) -> Tensor:
        """Returns the maximum."""
        return self.largest
