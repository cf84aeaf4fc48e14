"""Bits per byte of a language model."""

import math

from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["BitsPerByte"]


class BitsPerByte(MeanMetric):
    """Mean cross entropy in bits, per byte of text: comparable between tokenizers.

    ``update(loss, weight)`` takes the mean cross entropy in nats per token and the number of tokens.

    Attributes:
        bytes_per_token: mean length of a token in bytes.
    """

    bytes_per_token: float = 1.0

    def compute(self) -> Tensor:
        """Returns the scalar."""
        return super().compute() / (math.log(2) * self.bytes_per_token)
