"""Attention-based multiple instance learning (M. Ilse, J. M. Tomczak, M. Welling, "Attention-based Deep Multiple
Instance Learning", 2018, arXiv 1802.04712, equations 7 to 9), with the embedding before it of W. Tang and others,
"Multiple Instance Learning Framework with Masked Hard Instance Mining for Whole Slide Image Classification", 2023,
arXiv 2307.15254.
"""

import torch
from torch import Tensor, nn

from leyden.core.network import Network
from leyden.models._checks import check_dropout, check_positive

__all__ = ["AttentionMIL"]


class AttentionMIL(Network):
    """Embeds each instance of a bag, and classifies their mean, weighted by attention.

    Args:
        in_dim: numbers in one instance.
        num_classes: C.
        hidden: D, size of an embedding.
        attention_dim: size of what the attention is a linear function of.
        gated: whether a sigmoid gates the tanh in the attention.
        dropout: rate of dropout of the embeddings.

    Raises:
        ValueError: a size below 1, or a rate outside [0, 1).
    """

    head: nn.Linear

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        gated: bool = False,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, num_classes=num_classes, hidden=hidden, attention_dim=attention_dim)
        check_dropout(dropout)
        self.feature_dim = hidden
        self.embedding = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.value = nn.Linear(hidden, attention_dim, bias=False)
        self.gate = nn.Linear(hidden, attention_dim, bias=False) if gated else None
        self.score = nn.Linear(attention_dim, 1, bias=False)
        self.head = nn.Linear(hidden, num_classes)
        for module in self.modules():  # as the authors of the second paper do
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Maps instances ``[B, N, ...]``, with ``in_dim`` numbers each, to ``[B, N, D]``."""
        return self.embedding(x.flatten(2))

    def pool(self, embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means of embeddings.

        Args:
            embeddings: ``[B, N, D]``.
            mask: which instances there are, bool ``[B, N]``; all if None.

        Returns:
            Features of the bags, ``[B, D]``, and attention, ``[B, N]``, which sums to 1 and is 0 where the mask is.
        """
        hidden = self.value(embeddings).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(embeddings).sigmoid()
        scores = self.score(hidden).squeeze(-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        attention = scores.softmax(-1)
        return (attention.to(embeddings.dtype).unsqueeze(1) @ embeddings).squeeze(1), attention

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps bags ``[B, N, ...]`` to features ``[B, D]``; the mask is that of `pool`."""
        return self.pool(self.embed(x), mask)[0]
