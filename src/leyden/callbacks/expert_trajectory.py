"""The weights of a fit epoch by epoch, as the distillation of data sets matches them (Z. Guo et al., "Towards Lossless
Dataset Distillation via Difficulty-Aligned Trajectory Matching", 2023, arXiv 2310.05773).
"""

from typing import Annotated, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core import Method, MethodCallback
from leyden.core.distributed import whole

__all__ = ["ExpertTrajectory", "TrajectoryFile", "read_trajectory"]

TrajectoryFile = Annotated[str, "checkpoint"]  # path of a checkpoint of a fit with ExpertTrajectory


class ExpertTrajectory(MethodCallback):
    """Keeps the network's parameters as the fit starts and after every few epochs, in the checkpoints' state.

    They lie in memory, and in each checkpoint that is written; `read_trajectory` reads them from the last one.

    Args:
        every_n_epochs: epochs between two.

    Raises:
        ValueError: ``every_n_epochs`` is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._parameters: dict[int, dict[str, Tensor]] = {}  # by number of epochs done

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the parameters that the fit starts from.

        Raises:
            MisconfigurationException: it goes on from a checkpoint that does not have them.
        """
        if trainer.global_step == 0:
            self._parameters = {}
            self._keep(pl_module, 0)
        elif not self._parameters:
            raise MisconfigurationException(
                "ExpertTrajectory begins with the weights of a fit's start, but this one goes on from a checkpoint "
                "without them: train from the start"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the parameters after the epoch."""
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs == 0:
            self._keep(pl_module, epochs)

    def state_dict(self) -> dict[str, Any]:
        """The parameters by number of epochs."""
        return {"parameters": dict(self._parameters)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them."""
        self._parameters = dict(state_dict["parameters"])

    def _keep(self, pl_module: LightningModule, epochs: int) -> None:
        named = cast(Method, pl_module).network.named_parameters()
        self._parameters[epochs] = {name: whole(p.detach()).to("cpu", copy=True) for name, p in named}


def read_trajectory(path: TrajectoryFile) -> dict[str, Tensor]:
    """Reads what an `ExpertTrajectory` has kept.

    Args:
        path: a checkpoint of its fit.

    Returns:
        The parameters ``[T, ...]`` by name, in the order of time.

    Raises:
        ValueError: it has none.
    """
    callbacks = torch.load(path, map_location="cpu", weights_only=True).get("callbacks", {})
    if ExpertTrajectory.__name__ not in callbacks:
        raise ValueError(f"{path} has no trajectory: train with leyden.callbacks.ExpertTrajectory")
    parameters = callbacks[ExpertTrajectory.__name__]["parameters"]
    times = [parameters[epochs] for epochs in sorted(parameters)]
    return {name: torch.stack([time[name] for time in times]) for name in times[0]}
