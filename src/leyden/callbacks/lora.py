"""LoRA in any network (E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685)."""

from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import Method, MethodCallback
from leyden.nn import apply_lora

__all__ = ["LoRA"]


class LoRA(MethodCallback):
    """Trains updates of low rank beside the fixed weights of the network (`leyden.nn.apply_lora`).

    Put it behind `leyden.callbacks.InitialWeights`, which loads what is tuned. Checkpoints hold weights and updates:
    evaluate them with this callback in the list, too; ``leyden export`` adds them up.

    Args:
        rank: of the updates.
        alpha: their scale, times ``rank``.
        match: shell-style patterns of the dotted names of linear layers in the network.
        skip: dotted names of modules in the network that are trained as a whole, such as a new ``head``.
    """

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, *, match: Sequence[str] = ("*",), skip: Sequence[str] = ()
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.match = tuple(match)
        self.skip = tuple(skip)

    def build(self, method: Method) -> None:
        """Replaces the layers.

        Raises:
            MisconfigurationException: the network has no such layers (another callback may have replaced or
                parametrized them), or they are too small for the rank.
        """
        try:
            apply_lora(method.network, rank=self.rank, alpha=self.alpha, match=self.match, skip=self.skip)
        except ValueError as error:
            raise MisconfigurationException(f"LoRA: {error}") from None
        method.taps.renew()
