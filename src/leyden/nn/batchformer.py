"""Attention between the samples of a batch (Z. Hou, B. Yu, D. Tao, "BatchFormer: Learning to Explore Sample
Relationships for Robust Representation Learning", 2022, arXiv 2203.01522; Z. Hou, B. Yu, C. Wang, Y. Zhan, D. Tao,
"BatchFormerV2: Exploring Sample Relationships for Dense Representation Learning", 2022, arXiv 2204.01254; authors'
code: zhihou7/BatchFormer)."""

import torch
from torch import Tensor, nn

__all__ = ["BatchFormer", "BatchFormerV2"]


class _BatchEncoder(nn.Module):
    def __init__(self, dim: int, heads: int = 4, *, hidden_dim: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, and both at least 1, got dim={dim} and heads={heads}")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.encoder = nn.TransformerEncoderLayer(dim, heads, hidden_dim or dim, dropout)

    def encode(self, x: Tensor) -> Tensor:
        """Applies the encoder, in the precision of its weights also under autocast.

        Args:
            x: ``[N, D]``, or ``[N, L, D]``: each of the L places attends to the same place of the N samples.

        Returns:
            Of the shape and dtype of ``x``.
        """
        with torch.autocast(x.device.type, enabled=False):  # the authors' V2 did not train in half precision
            return self.encoder(x.to(self.encoder.linear1.weight.dtype)).to(x.dtype)


class BatchFormer(_BatchEncoder):
    """Appends to features the same features after attention between the samples; the identity in evaluation.

    It stands between a network and its head, which sees both halves, and is left out of what is deployed.

    Args:
        dim: D, of the features.
        heads: of the attention.
        hidden_dim: of the encoder's MLP; ``dim`` if None.
        dropout: rate in the encoder.

    Raises:
        ValueError: an argument is out of range.
    """

    def forward(self, features: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Doubles a batch in training.

        Args:
            features: ``[N, D]``.
            target: ``[N, ...]``, or None.

        Returns:
            Features ``[2N, D]``, the first half as they were, and targets ``[2N, ...]``.
        """
        if not self.training:
            return features, target
        doubled = None if target is None else torch.cat([target, target])
        return torch.cat([features, self.encode(features)]), doubled


class BatchFormerV2(_BatchEncoder):
    """The same between blocks of a network of tokens: each place attends to this place of the other samples.

    The first one in a network doubles the batch, so that the head has 2N rows and targets have to be doubled; the
    others apply their encoder to the second half alone. They may share one ``encoder``. The identity in evaluation.

    Args:
        dim: D, of the tokens.
        heads: of the attention.
        hidden_dim: of the encoder's MLP; ``dim`` if None.
        dropout: rate in the encoder.
        first: whether it is the first one in the network.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        hidden_dim: int | None = None,
        dropout: float = 0.5,
        first: bool = True,
    ) -> None:
        super().__init__(dim, heads, hidden_dim=hidden_dim, dropout=dropout)
        self.first = first

    def forward(self, tokens: Tensor) -> Tensor:
        """Doubles a batch in training, or encodes the second half of a doubled one.

        Args:
            tokens: ``[N, L, D]``; ``[2N, L, D]`` if it is not the first one.

        Returns:
            ``[2N, L, D]``, the first half as it was.

        Raises:
            ValueError: the tokens have another shape.
        """
        if tokens.ndim != 3 or (self.training and not self.first and len(tokens) % 2):
            raise ValueError(
                f"tokens must be [N, L, D], with an even N behind the first BatchFormerV2, got {tuple(tokens.shape)}"
            )
        if not self.training:
            return tokens
        plain, to_encode = (tokens, tokens) if self.first else tokens.chunk(2)
        return torch.cat([plain, self.encode(to_encode)])
