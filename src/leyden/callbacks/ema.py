"""Evaluation and export with an exponential moving average of the weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core.distributed import local_shards
from leyden.weights.ema import ema_decay, lerp_, power_ema_decay

__all__ = ["EMA"]


class EMA(Callback):
    """Keeps an average of the weights in float32 and uses it in validation, in checkpoints and after the fit.

    Works on any LightningModule. A checkpoint holds the average as ``state_dict`` (what exports and tests read) and the
    weights that training goes on with as ``current_model_state``.

    Args:
        decay: share of the old average that an update keeps.
        warmup: let the decay grow from 0, as `leyden.weights.ema_decay` says.
        power_std: relative width of a power-function average (`leyden.weights.power_ema_decay`), instead of ``decay``.
        every_n_steps: optimizer steps between two updates.
        start_step: the average is a copy of the weights until this optimizer step.
        buffers: ``"copy"`` evaluates with the buffers of training, ``"average"`` averages floating-point buffers too.
        device: where the average is kept; that of the weights if None.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        power_std: float | None = None,
        every_n_steps: int = 1,
        start_step: int = 0,
        buffers: str = "copy",
        device: str | None = None,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if buffers not in ("copy", "average"):
            raise ValueError(f"buffers must be 'copy' or 'average', got {buffers!r}")
        if power_std is not None:
            power_ema_decay(1, std=power_std)  # checks the width
        self.decay = decay
        self.warmup = warmup
        self.power_std = power_std
        self.every_n_steps = every_n_steps
        self.start_step = start_step
        self.buffers = buffers
        self.device = device
        self._names: list[list[str]] = []
        self._current: list[Tensor] = []
        self._average: list[Tensor] = []
        self._local: tuple[list[Tensor], list[Tensor]] = ([], [])  # what this process has of the two
        self._weights: list[Tensor] | None = None  # those of training, while the average stands in for them
        self._loaded: dict[str, Tensor] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there is one average only.

        Raises:
            MisconfigurationException: there are two; or a ModelCheckpoint saves weights only, which Lightning does
                without asking callbacks, so that the file would not have the average.
        """
        if sum(isinstance(callback, EMA) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "there are two EMA callbacks, but only one average can be evaluated: keep one"
            )
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                "a ModelCheckpoint with save_weights_only=True would save weights without the average: set it to False "
                "(the state_dict of a whole checkpoint is the average)"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the weights, or takes the average of a loaded checkpoint."""
        averaged = {id(parameter) for parameter in pl_module.parameters()}
        if self.buffers == "average":
            averaged |= {id(buffer) for buffer in pl_module.buffers() if buffer.is_floating_point()}
        tensors: dict[int, Tensor] = {}
        names: dict[int, list[str]] = {}  # a tied weight has several
        for name, tensor in pl_module.state_dict(keep_vars=True).items():
            if id(tensor) in averaged:
                tensors[id(tensor)] = tensor.detach()
                names.setdefault(id(tensor), []).append(name)
        self._names = list(names.values())
        self._current = list(tensors.values())
        self._average = [tensor.to(self.device, torch.float32, copy=True) for tensor in self._current]
        self._local = local_shards(self._average), local_shards(self._current)
        if self._loaded is not None:
            self._load_average(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step from which the fit goes on."""
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average, if the optimizer made a step."""
        step = trainer.global_step
        if step == self._step:  # gradients are still being accumulated
            return
        self._step = step
        if step % self.every_n_steps == 0:
            average, current = self._local
            lerp_(average, self._on_average_device(current), 1.0 - self._decay(step))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in place of the weights."""
        self._swap_in()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights back."""
        self._swap_out()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the weights back."""
        self._swap_out()

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module."""
        for weight, average in zip(self._current, self._average, strict=True):
            weight.copy_(average)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the average."""
        self._names, self._current, self._average, self._local = [], [], [], ([], [])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes the average the ``state_dict`` of the checkpoint."""
        if not self._average:
            return
        state = checkpoint["state_dict"]
        weights = self._current if self._weights is None else self._weights
        checkpoint["current_model_state"] = state | self._by_name(weights)
        checkpoint["state_dict"] = state | self._by_name(self._average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores the weights of training and the average, which starts from the weights if there is none.

        An evaluation keeps the average, which the ``state_dict`` holds.
        """
        if not trainer.training:
            return
        weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
        pl_module.load_state_dict(weights, strict=pl_module.strict_loading)
        if self._average:  # a strategy that restores after `on_fit_start`
            self._load_average(checkpoint["state_dict"])
        else:
            self._loaded = checkpoint["state_dict"]

    def _decay(self, step: int) -> float:
        if step - self.start_step <= self.every_n_steps:
            return 0.0  # the first update: the average begins as the weights
        if self.power_std is None:
            return ema_decay(step, decay=self.decay, warmup=self.warmup, update_after_step=self.start_step)
        return power_ema_decay(step - self.start_step, std=self.power_std, delta=self.every_n_steps)

    @torch.no_grad()
    def _load_average(self, state: dict[str, Tensor]) -> None:
        for names, average in zip(self._names, self._average, strict=True):
            average.copy_(state[names[0]])

    def _by_name(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return {name: tensor for names, tensor in zip(self._names, tensors, strict=True) for name in names}

    @torch.no_grad()
    def _swap_in(self) -> None:
        if not self._average or self._weights is not None:
            return
        self._weights = [weight.clone() for weight in self._current]
        for weight, average in zip(self._current, self._average, strict=True):
            weight.copy_(average)

    @torch.no_grad()
    def _swap_out(self) -> None:
        if self._weights is None:
            return
        for weight, kept in zip(self._current, self._weights, strict=True):
            weight.copy_(kept)
        self._weights = None

    def _on_average_device(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors if self.device is None else [tensor.to(self.device) for tensor in tensors]
