"""Mask tuning of any network (K. Zheng et al., "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
Vision-Language Models", 2023, arXiv 2307.15049)."""

from collections.abc import Sequence
from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.core import Method, MethodCallback
from leyden.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, apply_mask_tuning

__all__ = ["MaskTuning"]


class MaskTuning(MethodCallback):
    """Learns which weights of the network take part, and leaves them as they are (`leyden.nn.apply_mask_tuning`).

    Put it behind `leyden.callbacks.InitialWeights`, which loads what is tuned. Batch norms outside of ``skip`` keep
    their statistics. Checkpoints hold weights and scores: evaluate them with this callback in the list, too; ``leyden
    export`` makes plain weights of them. Leave weight decay off the scores, as by
    ``param_groups: {"*.scores": {weight_decay: 0.0}}``.

    Args:
        match: shell-style patterns of the dotted names of linear layers and convolutions in the network.
        skip: dotted names of modules in the network that are trained as a whole, such as a new ``head``.
        init: score that all weights start from.
        threshold: score from which a weight takes part.
    """

    def __init__(
        self,
        match: Sequence[str] = ("*",),
        *,
        skip: Sequence[str] = (),
        init: float = 1e-2,
        threshold: float = 5e-3,
    ) -> None:
        self.match = tuple(match)
        self.skip = tuple(skip)
        self.init = init
        self.threshold = threshold
        self._norms: list[nn.Module] = []

    def build(self, method: Method) -> None:
        """Masks the layers.

        Raises:
            MisconfigurationException: the network has no such layers, or ``init`` is not larger than ``threshold``.
        """
        try:
            apply_mask_tuning(method.network, self.match, skip=self.skip, init=self.init, threshold=self.threshold)
        except ValueError as error:
            raise MisconfigurationException(f"MaskTuning: {error}") from None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the batch norms.

        Raises:
            MisconfigurationException: there are ghost batch norms, whose only difference is in training.
        """
        network = cast(Method, pl_module).network
        free = {layer for name in self.skip for layer in network.get_submodule(name).modules()}
        norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
        self._norms = [layer for layer in norms.values() if layer.training and layer not in free]
        for name, layer in norms.items():
            if isinstance(layer, GhostBatchNorm1d | GhostBatchNorm2d | GhostBatchNorm3d) and layer not in free:
                raise MisconfigurationException(
                    f"MaskTuning keeps the statistics of batch norms, so that {name} would not be a ghost batch norm: "
                    "remove one of the two"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts batch norms in eval mode; Lightning keeps modes over validation."""
        for norm in self._norms:
            norm.eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the modes as they were."""
        for norm in self._norms:
            norm.train()
