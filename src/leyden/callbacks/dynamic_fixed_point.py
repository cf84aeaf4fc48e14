"""Training in dynamic fixed point (D. Das et al., "Mixed Precision Training of Convolutional Neural Networks using
Integer Operations", 2018, arXiv 1802.00930)."""

from collections.abc import Sequence

from leyden.core.callback import MethodCallback
from leyden.core.method import Method
from leyden.nn.dfp import convert_to_dfp

__all__ = ["DynamicFixedPoint"]


class DynamicFixedPoint(MethodCallback):
    """Turns the linear layers and convolutions of the network into ones whose products are of integers.

    See `leyden.nn.convert_to_dfp`. The arithmetic is emulated: it shows what training in integers would give, and is
    slower than float32. Names in a checkpoint stay. Stands before callbacks that parametrize weights.

    Args:
        bits: bits of an integer, its sign counted, 2 to 16.
        skip: dotted names of modules in the network that stay as they are, with all that is in them.

    Raises:
        ValueError: ``bits`` is out of range.
    """

    def __init__(self, bits: int = 16, skip: Sequence[str] = ("head",)) -> None:
        if not 2 <= bits <= 16:
            raise ValueError(f"bits must lie in 2..16, got {bits}")
        self.bits = bits
        self.skip = tuple(skip)

    def build(self, method: Method) -> None:
        """Converts the network."""
        convert_to_dfp(method.network, self.bits, self.skip)
