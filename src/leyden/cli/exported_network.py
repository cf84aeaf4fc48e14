"""The network of a checkpoint, as the run's config and callbacks made it, and batches to try it on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import leyden
from leyden.cli.commands import Arguments
from leyden.cli.config import Section
from leyden.cli.lightning import LeydenCLI, quiet_lightning
from leyden.core import Method, Network

__all__ = ["network_of_checkpoint"]


class ExportCLI(LeydenCLI):
    """Loads a checkpoint as ``leyden predict`` does, and keeps inputs instead of predictions.

    Args:
        tree: the merged config, with ``ckpt_path``.
        files: the config files that were named.
        folder: for what callbacks may write.

    Attributes:
        inputs: of the network, ``[N, ...]`` each.
    """

    def __init__(self, tree: Section, files: list[Path], folder: Path) -> None:
        self.inputs: list[Tensor] = []
        super().__init__("predict", tree, Arguments(resume=str(folder)), files)

    def instantiate_classes(self) -> None:
        """Makes all objects."""
        super().instantiate_classes()
        if not isinstance(self.model, Method):
            raise MisconfigurationException(f"the network of a Method is exported, {type(self.model).__name__} is none")
        self.trainer.callbacks.append(KeepInputs(self.inputs))  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Writes nothing."""


class KeepInputs(Callback):
    """Keeps ``input`` of each batch to predict.

    Args:
        inputs: where they are put.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        self.inputs = inputs

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps it."""
        self.inputs.append(batch["input"].detach().clone())


def network_of_checkpoint(
    tree: Section, files: list[Path], folder: Path
) -> tuple[Network, list[Tensor], dict[str, str]]:
    """Loads a checkpoint.

    Args:
        tree: the merged config, with ``ckpt_path``.
        files: the config files that were named.
        folder: for what callbacks may write.

    Returns:
        The network in eval mode, batches of different sizes ``[N, ...]``, and what a reader of the file should know:
        ``network`` and ``config`` (JSON), ``class``, ``versions`` (JSON).

    Raises:
        MisconfigurationException: the model is no `Method`.
        ValueError: there is nothing to predict.
    """
    quiet_lightning()
    cli = ExportCLI(tree, files, folder)
    if not cli.inputs:
        raise ValueError("the DataModule has no batch to predict, on which the exported network could be tried")
    network = cli.model.network.eval().requires_grad_(False)
    config = {key: value for key, value in cli.config_dump.items() if key != "ckpt_path"}
    versions = {"leyden": leyden.__version__, "torch": torch.__version__, "lightning": lightning.__version__}
    metadata = {
        "class": f"{type(network).__module__}.{type(network).__qualname__}",
        "network": json.dumps(_without_weights(config["model"].get("init_args", {}).get("network"))),
        "config": json.dumps(config),
        "versions": json.dumps(versions),
    }
    return network, [*_sizes(cli.inputs)], metadata


def _without_weights(network: Any) -> Any:
    """The config of a network without the file of weights that it began with."""
    while isinstance(network, dict) and network.get("class_path") == "leyden.models.pretrained":
        network = network["init_args"]["network"]
    return network


def _sizes(inputs: list[Tensor]) -> Iterator[Tensor]:
    first = inputs[0]
    # a format that is made from an example of one row would take one row only
    yield first if len(first) > 1 else torch.cat([first, first])
    yield from inputs[1:]
    yield first[:1]
    if len(first) > 3:
        yield first[:3]
