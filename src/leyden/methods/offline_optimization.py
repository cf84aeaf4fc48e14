"""Offline optimization: a surrogate of an unknown function, and the designs that it finds best."""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core.network import Network
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.inference.gradient_ascent import gradient_ascent
from leyden.methods.regression import Regression

__all__ = ["OfflineOptimization"]


class OfflineOptimization(Regression):
    """Regression of values on designs; the test also searches for designs, and asks what they are really worth.

    The search is gradient ascent on the network's output, from the best training designs. Logged are
    ``test/design_value``, the mean of the true values, and ``test/design_best``, the largest. The data have
    ``true_value`` and ``bounds``, as `leyden.data.HartmannDesigns`.

    Args:
        network: the surrogate, with one output.
        num_designs: designs that the search begins with.
        search_steps: steps of the search.
        search_lr: its learning rate.
        **kwargs: see `Regression`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: Network,
        *,
        num_designs: int = 64,
        search_steps: int = 200,
        search_lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if num_designs < 1 or search_steps < 0:
            raise ValueError(
                f"num_designs must be at least 1 and search_steps at least 0, got {num_designs} and {search_steps}"
            )
        if not search_lr > 0.0:
            raise ValueError(f"search_lr must be positive, got {search_lr}")
        self.num_designs = num_designs
        self.search_steps = search_steps
        self.search_lr = search_lr

    def setup(self, stage: str) -> None:
        """Checks that the data know what a design is worth."""
        if not hasattr(self.datamodule, "true_value"):
            raise MisconfigurationException(
                f"OfflineOptimization needs data with true_value, as leyden.data.HartmannDesigns, got "
                f"{type(self.datamodule).__name__}"
            )

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the test designs and the values of those that are found."""
        super().on_test_epoch_end()
        data = cast(Any, self.datamodule)
        known = cast(TensorDictDataset, cast(DataModule, data).dataset("train")).tensors
        best = known["target"].flatten().argsort(descending=True, stable=True)[: self.num_designs]
        with torch.inference_mode(False):
            designs = gradient_ascent(
                lambda x: self.network(x).flatten(),
                known["input"][best].to(self.device, cast(torch.dtype, self.dtype)),
                lr=self.search_lr,
                steps=self.search_steps,
                bounds=data.bounds,
            )
        values = data.true_value(designs)
        found = {"test/design_value": values.mean(), "test/design_best": values.max()}
        self.log_dict(found, sync_dist=True, reduce_fx=torch.max)  # the same on all processes
