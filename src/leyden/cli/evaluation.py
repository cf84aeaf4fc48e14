"""The objects of a config, without a run of them: to evaluate weights that no run has left, and functions of them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from leyden.cli.commands import Arguments
from leyden.cli.config import ConfigError, Section, set_option
from leyden.cli.lightning import LeydenCLI, quiet_lightning
from leyden.cli.quiet import only_measured

__all__ = ["Evaluation"]


class Evaluation(LeydenCLI):
    """Makes model, data and trainer of a config, and evaluates state dicts with them, on one device.

    Args:
        tree: the merged config.
        files: the config files that were named.
        folder: for what callbacks may write.
        command: ``validate`` or ``test``.
    """

    def __init__(self, tree: Section, files: list[Path], folder: Path, command: str = "validate") -> None:
        quiet_lightning()
        only_measured(tree, logger="false")
        for key in ("devices", "num_nodes"):
            set_option(tree, f"trainer.{key}", "1")
        self._weights = LoadedState()
        super().__init__(command, tree, Arguments(resume=str(folder)), files)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing yet."""

    def instantiate_classes(self) -> None:
        """Makes all objects."""
        super().instantiate_classes()
        self.trainer.callbacks.append(self._weights)  # type: ignore[attr-defined]

    @property
    def measures_batch_norm(self) -> bool:
        """Whether the model has statistics of BatchNorm."""
        return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in self.model.modules())

    def metrics(self, state: Mapping[str, Tensor], *, measure_batch_norm: bool = False) -> dict[str, float]:
        """Evaluates a state dict.

        Args:
            state: of the whole model.
            measure_batch_norm: whether statistics of BatchNorm are measured anew on the training data, as averages of
                weights need; `statistics` has them then.

        Raises:
            MisconfigurationException: the state does not fit the model.
        """
        self._weights.state, self._weights.measure_batch_norm = state, measure_batch_norm
        run = self.trainer.validate if self.command == "validate" else self.trainer.test
        return {
            k: v for result in run(self.model, datamodule=self.datamodule, verbose=False) for k, v in result.items()
        }

    def statistics(self) -> dict[str, Tensor]:
        """Returns the entries of BatchNorm layers as they were measured."""
        names = [name for name, module in self.model.named_modules() if isinstance(module, _BatchNorm)]
        state = self.model.state_dict()
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{buffer}": state[f"{name}.{buffer}"].cpu().clone() for name in names for buffer in buffers}

    def call(
        self, state: Mapping[str, Tensor], function: Callable[..., Mapping[str, Any]], arguments: Mapping[str, Any]
    ) -> dict[str, float]:
        """Evaluates by a function of the model with its weights and the data: ``function(method, data, **arguments)``.

        Raises:
            ConfigError: it returned something else than numbers by name.
        """
        self.trainer.limit_test_batches = self.trainer.limit_val_batches = 0  # makes the parts, and no more
        self.metrics(state)
        self.model.to(self.trainer.strategy.root_device).eval()
        with torch.no_grad():
            returned = function(self.model, self.datamodule, **arguments)
        if not isinstance(returned, Mapping) or not returned:
            raise ConfigError(f"{function.__name__} must return numbers by name, it returned {returned!r:.80}")
        return {name: float(value) for name, value in returned.items()}


class LoadedState(Callback):
    """Puts a state dict into the model when all other callbacks have made their parts.

    Attributes:
        state: the state dict.
        measure_batch_norm: whether to measure statistics of BatchNorm anew.
    """

    def __init__(self) -> None:
        self.state: Mapping[str, Tensor] = {}
        self.measure_batch_norm = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Loads."""
        checkpoint: dict[str, Any] = {"state_dict": dict(self.state)}
        pl_module.on_load_checkpoint(checkpoint)
        pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        if self.measure_batch_norm:
            device = trainer.strategy.root_device
            update_bn(_inputs(trainer.datamodule, device), pl_module.to(device))  # type: ignore[attr-defined]


def _inputs(data: LightningDataModule, device: torch.device) -> Iterable[Tensor]:
    data.setup("fit")
    for batch in data.train_dataloader():
        yield (batch["input"] if isinstance(batch, Mapping) else batch[0]).to(device)
