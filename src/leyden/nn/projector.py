"""From the shape of a student's features to that of a teacher's."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Projector"]


class Projector(nn.Module):
    """A linear map of features, and a change of the size of maps.

    Vectors ``[N, D]`` and tokens ``[N, L, D]`` go through `torch.nn.Linear` over the last axis, maps ``[N, C, H, W]``
    through a 1x1 convolution and, if the size differs, bilinear interpolation.

    Args:
        in_shape: shape of the features, without N.
        out_shape: the shape to make of them.

    Raises:
        ValueError: the shapes have other numbers of axes, or tokens other lengths.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        if len(in_shape) != len(out_shape) or not 1 <= len(in_shape) <= 3:
            raise ValueError(
                f"in_shape and out_shape must both be [D], [L, D] or [C, H, W], got {list(in_shape)} and "
                f"{list(out_shape)}"
            )
        if len(in_shape) == 2 and in_shape[0] != out_shape[0]:
            raise ValueError(f"tokens must be of the same number on both sides, got {in_shape[0]} and {out_shape[0]}")
        self.size = tuple(out_shape[1:]) if len(in_shape) == 3 else None
        if self.size is None:
            self.map: nn.Module = nn.Linear(in_shape[-1], out_shape[-1])
        else:
            self.map = nn.Conv2d(in_shape[0], out_shape[0], kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features ``[N, *in_shape]`` to ``[N, *out_shape]``."""
        x = self.map(x)
        if self.size is None or tuple(x.shape[2:]) == self.size:
            return x
        return functional.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
