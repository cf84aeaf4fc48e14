"""SigmaReparam in any network (S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy
Collapse", 2023, arXiv 2303.06296)."""

from collections.abc import Sequence

from leyden.core.callback import MethodCallback
from leyden.core.method import Method
from leyden.nn.sigma_reparam import apply_sigma_reparam

__all__ = ["SigmaReparametrization"]


class SigmaReparametrization(MethodCallback):
    """Reparametrizes the linear layers and convolutions of the network by `leyden.nn.SigmaReparam`.

    Checkpoints hold the parametrized weights: evaluate them with this callback in the list, too.

    Args:
        skip: dotted names of modules in the network that are left out, with all that is in them, such as ``head``.
    """

    def __init__(self, skip: Sequence[str] = ()) -> None:
        self.skip = tuple(skip)

    def build(self, method: Method) -> None:
        """Reparametrizes the network."""
        apply_sigma_reparam(method.network, self.skip)
