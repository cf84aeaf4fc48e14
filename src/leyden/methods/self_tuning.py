"""Self-Tuning Networks (M. MacKay, P. Vicol, J. Lorraine, D. Duvenaud, R. Grosse, "Self-Tuning Networks: Bilevel
Optimization of Hyperparameters using Structured Best-Response Functions", 2019, arXiv 1903.03088, algorithm 1; authors'
code: asteroidhouse/self-tuning-networks)."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core.batch import Batch, require_keys
from leyden.core.distributed import rank, world_size
from leyden.core.evaluating import evaluating
from leyden.core.gradients import gradients_per_term
from leyden.core.network import Network, Outputs
from leyden.core.random import sample_keys
from leyden.data.loader import ResumableLoader
from leyden.data.module import DataModule
from leyden.data.sampler import GlobalBatchSampler
from leyden.losses.perturbation_entropy import perturbation_entropy
from leyden.methods._two_passes import check_two_passes
from leyden.methods.classification import Classification
from leyden.nn.self_tuning import Hyperparameters

__all__ = ["SelfTuning"]


class SelfTuning(Classification):
    """Trains a network to respond to its hyperparameters, and tunes these on the validation data, in one fit.

    A training step perturbs the hyperparameters of each sample, and trains the weights. After ``warmup_epochs``, and
    before every ``train_steps``-th step from then on, ``valid_steps`` steps of Adam on batches of the validation data
    change the hyperparameters and the scales of their perturbations, in evaluation mode and with the weights held.
    They are no steps of the trainer, and callbacks do not see them. Values are logged as ``hyperparameters/<name>``.

    As the hyperparameters are fitted to them, the validation data no longer say how the network does on new data.

    Args:
        network: has ``hyperparameters``, a `leyden.nn.Hyperparameters`, and its ``features`` take the real numbers of
            these and keys of random draws, as `leyden.models.SelfTuningMLP` does.
        train_steps: optimizer steps before hyperparameters are tuned, and between.
        valid_steps: steps for hyperparameters at a time; 0 never tunes them.
        entropy_weight: factor of the perturbations' entropy, which is rewarded.
        warmup_epochs: epochs without tuning.
        hparam_lr: learning rate of the hyperparameters.
        scale_lr: learning rate of the scales; with None they stay as they are, and tuning does not perturb.
        **kwargs: see `Classification`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: Network,
        *,
        train_steps: int = 2,
        valid_steps: int = 1,
        entropy_weight: float = 1e-5,
        warmup_epochs: int = 5,
        hparam_lr: float = 3e-3,
        scale_lr: float | None = 3e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if train_steps < 1:
            raise ValueError(f"train_steps must be at least 1, got {train_steps}")
        not_negative = {
            "valid_steps": valid_steps,
            "entropy_weight": entropy_weight,
            "warmup_epochs": warmup_epochs,
            "hparam_lr": hparam_lr,
            "scale_lr": scale_lr or 0.0,
        }
        for name, value in not_negative.items():
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.train_steps = train_steps
        self.valid_steps = valid_steps
        self.entropy_weight = entropy_weight
        self.warmup_epochs = warmup_epochs
        self.hparam_lr = hparam_lr
        self.scale_lr = scale_lr
        self._next_tuning: int | None = None  # optimizer steps made by then; set when the warm-up ends
        self._num_tuned = 0  # steps for hyperparameters
        self._resumed: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Checks network and data.

        Raises:
            MisconfigurationException: the network has no hyperparameters, or there are no validation data.
        """
        super().setup(stage)
        if not isinstance(getattr(self.network, "hyperparameters", None), Hyperparameters):
            raise MisconfigurationException(
                "SelfTuning needs a network with hyperparameters, such as leyden.models.SelfTuningMLP, got "
                f"{type(self.network).__name__}"
            )
        if stage == "fit" and not isinstance(self.datamodule, DataModule):
            raise MisconfigurationException(
                f"SelfTuning tunes on the validation data of a leyden.data.DataModule, got "
                f"{type(self.datamodule).__name__}"
            )

    def on_fit_start(self) -> None:
        """Makes the stream of validation batches and the optimizer of the hyperparameters, or goes on with them.

        Raises:
            MisconfigurationException: parameters are sharded, or the precision is one that needs a scaled loss.
        """
        super().on_fit_start()
        check_two_passes(self)
        knobs = self._knobs
        groups: list[dict[str, Any]] = [{"params": [knobs.h], "lr": self.hparam_lr}]
        if self.scale_lr is not None:
            groups.append({"params": [knobs.raw_scale], "lr": self.scale_lr})
        self._tuner = torch.optim.Adam(groups)
        data = cast(DataModule, self.datamodule)
        dataset = data.dataset("val")
        size = len(cast(Sized, dataset))
        sampler = GlobalBatchSampler(
            size, min(data.batch_size, size), seed=data.seed, num_replicas=world_size(), rank=rank()
        )
        self._valid_loader = ResumableLoader(dataset, sampler)
        self._valid_batches = _endless(self._valid_loader)
        self._next_tuning, self._num_tuned = None, 0
        if self._resumed is not None:
            state, self._resumed = self._resumed, None
            rates = [group["lr"] for group in groups]
            self._tuner.load_state_dict(state["tuner"])
            for group, lr in zip(self._tuner.param_groups, rates, strict=True):
                group["lr"] = lr  # the arguments of this run count
            self._valid_loader.load_state_dict(state["valid_loader"])
            self._next_tuning, self._num_tuned = state["next_tuning"], state["num_tuned"]

    @property
    def _knobs(self) -> Hyperparameters:
        return cast(Hyperparameters, self.network.hyperparameters)

    def compute(self, batch: Batch) -> Outputs:
        """Runs the network: in training with perturbed hyperparameters, otherwise with those that it has."""
        if not self.training:
            return super().compute(batch)
        require_keys(batch, "index", user="SelfTuning")
        keys = sample_keys(getattr(self.datamodule, "seed", 0), self.global_step, batch["index"])
        features, logits = self._run_network(self.network, batch["input"], self._knobs.perturb(keys), keys)
        return Outputs(logits=logits, features=features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Tunes the hyperparameters where it is time, and returns the loss of the training batch."""
        if self.current_epoch >= self.warmup_epochs:
            if self._next_tuning is None:
                self._next_tuning = self.global_step + self.train_steps
            if self.global_step >= self._next_tuning:
                for _ in range(self.valid_steps):
                    self._tune()
                self._next_tuning = self.global_step + self.train_steps
        if self._is_logged_step():
            values = self._knobs.values(self._knobs.h.unsqueeze(0))
            self.log_dict({f"hyperparameters/{name}": value.squeeze() for name, value in values.items()})
        return super().training_step(batch, batch_idx)

    def _tune(self) -> None:
        """Makes one step for the hyperparameters."""
        batch = self.trainer.precision_plugin.convert_input(next(self._valid_batches))
        batch = move_data_to_device(batch, self.device)
        knobs = self._knobs.requires_grad_(True)
        h = knobs.h.unsqueeze(0)
        if self.scale_lr is not None:
            seed = cast(DataModule, self.datamodule).seed
            h = knobs.perturb(sample_keys(seed, -1 - self._num_tuned, batch["index"]))  # training steps are 0, 1, ...
        with evaluating(self.network):
            features, logits = self._run_network(self.network, batch["input"], h)
        terms = self.loss_terms(batch, Outputs(logits=logits, features=features))
        terms["entropy"] = -self.entropy_weight * perturbation_entropy(knobs.raw_scale)
        tuned = [p for group in self._tuner.param_groups for p in group["params"]]
        loss = torch.stack(list(terms.values())).sum()
        for p, gradient in zip(tuned, gradients_per_term({"loss": loss}, tuned)["loss"], strict=True):
            p.grad = gradient
        self._tuner.step()
        self._tuner.zero_grad()
        knobs.requires_grad_(False)
        self._num_tuned += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the tuning."""
        super().on_save_checkpoint(checkpoint)
        if self._num_tuned or self._next_tuning is not None:
            checkpoint["method"]["self_tuning"] = {
                "tuner": self._tuner.state_dict(),
                "valid_loader": self._valid_loader.state_dict(),
                "next_tuning": self._next_tuning,
                "num_tuned": self._num_tuned,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what `on_save_checkpoint` added for `on_fit_start`."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.training:
            self._resumed = checkpoint.get("method", {}).get("self_tuning")


def _endless(loader: ResumableLoader) -> Iterator[Batch]:
    """Yields batches, epoch after epoch."""
    while True:
        yield from loader
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
