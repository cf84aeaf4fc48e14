"""Weight compander in any network (R. Cakaj, J. Mehnert, B. Yang, "Weight Compander: A Simple Weight Reparameterization
for Regularization", 2023, arXiv 2306.16993)."""

from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Method, MethodCallback
from leyden.nn import WeightCompander, apply_weight_compander

__all__ = ["WeightCompanding"]


class WeightCompanding(MethodCallback):
    """Reparametrizes the linear layers and convolutions of the network by `leyden.nn.WeightCompander`.

    Checkpoints hold the parametrized weights: evaluate them with this callback in the list, too; ``leyden export``
    makes plain weights of them.

    Args:
        a: weights lie within ``a pi / 2``.
        b: the larger, the nearer to linear.
        learnable: whether each layer trains its own ``a`` and ``b``.
        skip: dotted names of modules in the network that are left out, with all that is in them, such as ``head``.

    Raises:
        ValueError: ``a`` or ``b`` is not positive and finite.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, *, learnable: bool = True, skip: Sequence[str] = ()) -> None:
        WeightCompander(a, b)
        self.a, self.b = a, b
        self.learnable = learnable
        self.skip = tuple(skip)

    def build(self, method: Method) -> None:
        """Reparametrizes the network.

        Raises:
            MisconfigurationException: there is no layer for it, or a weight cannot be reparametrized.
        """
        try:
            apply_weight_compander(method.network, a=self.a, b=self.b, learnable=self.learnable, skip=self.skip)
        except ValueError as error:
            raise MisconfigurationException(f"WeightCompanding: {error}") from None
