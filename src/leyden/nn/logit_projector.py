"""From features of an inner layer to logits (Z. Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous
Architectures in Knowledge Distillation", 2023, arXiv 2310.19444; authors' code: Hao840/OFAKD)."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["LogitProjector"]


class LogitProjector(nn.Module):
    """An exit of a network: separable convolutions for maps, a transformer block for tokens, then a linear layer.

    Maps are halved until they have four places or fewer per side, and averaged, as tokens are after the block.

    Args:
        in_shape: shape of the features without N: ``[D]``, ``[L, D]`` or ``[C, H, W]``.
        out_shape: ``[C]``, the number of classes, as a sequence so that it can stand where a `Projector` does.
        hidden: channels of the convolutions, or hidden units of the block; C, or 4 D, if None.

    Raises:
        ValueError: other shapes, or ``hidden`` below 1.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], *, hidden: int | None = None) -> None:
        super().__init__()
        if not 1 <= len(in_shape) <= 3 or len(out_shape) != 1:
            raise ValueError(
                f"in_shape must be [D], [L, D] or [C, H, W] and out_shape [C], got {list(in_shape)} and "
                f"{list(out_shape)}"
            )
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.mean_over = {1: (), 2: (1,), 3: (2, 3)}[len(in_shape)]
        self.body = nn.Sequential()
        width = in_shape[-1]
        if len(in_shape) == 2:
            heads = next(heads for heads in (4, 2, 1) if width % heads == 0)
            self.body.append(
                nn.TransformerEncoderLayer(
                    width, heads, hidden or 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
            )
            self.body.append(nn.LayerNorm(width))
        elif len(in_shape) == 3:
            width, side = in_shape[0], max(in_shape[1:])
            while side > 4:
                self.body.append(_separable_convolution(width, hidden or in_shape[0]))
                width, side = hidden or in_shape[0], (side + 1) // 2
        self.head = nn.Linear(width, out_shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Maps features ``[N, *in_shape]`` to logits ``[N, C]``."""
        x = self.body(x)
        return self.head(x.mean(self.mean_over) if self.mean_over else x)


def _separable_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
