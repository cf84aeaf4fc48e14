"""The local activation unit (G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2017, arXiv
1706.06978, equation 3): of a user's history, what is related to the candidate.

Without softmax, as in the paper, the size of the result says how much of the history is related. The authors' code
(zhougr1993/DeepInterestNetwork) divides the scores by the root of the dimension and takes their softmax.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["LocalActivationPool"]


class LocalActivationPool(nn.Module):
    """Sum of keys, each weighted by a small network that sees it beside the query.

    The weight of key k for query q is ``mlp([q, k, q - k, q * k])``.

    Args:
        dim: D.
        hidden: sizes of the hidden layers.
        activation: class of the module behind each hidden layer.
        normalize: take the softmax of the weights over the keys.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (80, 40),
        *,
        activation: type[nn.Module] = nn.Sigmoid,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if min(dim, *hidden) < 1:
            raise ValueError(f"dim and hidden must be sizes of 1 or more, got {dim} and {tuple(hidden)}")
        self.dim = dim
        self.normalize = normalize
        sizes = (4 * dim, *hidden)
        layers = [(nn.Linear(*pair), activation()) for pair in zip(sizes, hidden, strict=False)]
        self.score = nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(sizes[-1], 1))

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Pools the keys of each query.

        Args:
            query: ``[N, D]``.
            keys: ``[N, T, D]``.
            mask: bool ``[N, T]``, False where there is no key.

        Returns:
            ``[N, D]``; zeros where there is no key at all.

        Raises:
            ValueError: shapes or dtypes differ from these.
        """
        if keys.ndim != 3 or keys.shape[-1] != self.dim or query.shape != (len(keys), self.dim):
            raise ValueError(
                f"query and keys must have shapes [N, {self.dim}] and [N, T, {self.dim}], got {tuple(query.shape)} and "
                f"{tuple(keys.shape)}"
            )
        if mask.dtype != torch.bool or mask.shape != keys.shape[:2]:
            raise ValueError(
                f"mask must be bool {tuple(keys.shape[:2])} as the keys, got {mask.dtype} {tuple(mask.shape)}"
            )
        queries = query.unsqueeze(1).expand_as(keys)
        scores = self.score(torch.cat([queries, keys, queries - keys, queries * keys], -1)).squeeze(-1)  # [N, T]
        if self.normalize:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return (scores.masked_fill(~mask, 0.0).unsqueeze(1) @ keys).squeeze(1)
