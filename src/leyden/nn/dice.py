"""Dice (G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2017, arXiv 1706.06978, equation 9).

The authors' code multiplies the normalised input by a learned factor that starts at 0; equation 9 and the other
implementations have no such factor.
"""

import torch
from torch import Tensor, nn

__all__ = ["Dice"]


class Dice(nn.Module):
    """Data adaptive activation: ``p x + (1 - p) alpha x`` with ``p = sigmoid(batch_norm(x))``.

    A PReLU whose two sides meet at the mean of the inputs, and smoothly. The batch norm has no parameters: statistics
    of the batch in training, running ones in evaluation.

    Args:
        num_features: D.
        eps: of the batch norm.
        momentum: of its running statistics.

    Attributes:
        alpha: slope on the low side, ``[D]``; starts at 0.

    Raises:
        ValueError: ``num_features`` is below 1.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.norm = nn.BatchNorm1d(num_features, eps=eps, momentum=momentum, affine=False)
        self.alpha = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, ..., D]`` to the same shape; all dimensions but the last make up the batch.

        Raises:
            ValueError: the last dimension is not D.
        """
        if x.ndim < 2 or x.shape[-1] != len(self.alpha):
            raise ValueError(f"x must have shape [N, ..., {len(self.alpha)}], got {tuple(x.shape)}")
        p = self.norm(x.flatten(0, -2)).view_as(x).sigmoid()
        return p * x + (1.0 - p) * self.alpha * x
