"""Consistency models, trained from data alone (Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023,
arXiv 2303.01469; authors' code: openai/consistency_models), and better (Y. Song, P. Dhariwal, "Improved Techniques for
Training Consistency Models", 2023, arXiv 2310.14189).

The authors' code gives the teacher of plain training dropout too; here it has none.
"""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from leyden.core.batch import Batch, Terms, require_keys
from leyden.core.method import Method
from leyden.core.network import Network, Outputs
from leyden.core.random import normal, sample_keys, uniform
from leyden.inference.consistency import consistency_sample
from leyden.losses.consistency import (
    consistency_teacher_decay,
    consistency_training_loss,
    ict_discretization_steps,
    karras_sigmas,
    lognormal_sigma_probabilities,
    progressive_discretization_steps,
)
from leyden.methods._pictures import log_pictures
from leyden.metrics.frechet import FrechetDistance
from leyden.nn.consistency import ConsistencyPrecond
from leyden.nn.ema_teacher import EMATeacher

__all__ = ["ConsistencyTraining"]

_SIGMA, _NOISE = 0xC0, 0xC1  # streams of random numbers, other than those of augmentation
_EVALUATION = -1  # stands for the step in keys of noise that is the same in every evaluation


class ConsistencyTraining(Method):
    """Trains a network to make samples of noise in one step: alike from two points of one path from data to noise.

    Random numbers depend on seed, optimizer step and ``index`` alone. An evaluation draws the same ones every time, has
    the last training step's sigmas, and the network itself as teacher; it logs ``frechet_distance`` of as many samples
    as there are real ones, made in one step, and ``frechet_distance_two_step``. After each validation pictures of both
    go to W&B and TensorBoard. The network's output for predictions and exports is a sample.

    Args:
        network: maps noisy samples ``[N, ...]`` and times ``[N]`` to the shape of the samples, as `leyden.models.UNet`;
            `leyden.nn.ConsistencyPrecond` is put around it.
        improved: the second paper's pseudo-Huber distance, weights, sigmas, and no teacher; else the first paper's mean
            squares, uniform sigmas, and an average of the network as teacher.
        sigma_data: standard deviation of the data, which should lie in [-1, 1].
        sigma_min: least size of noise.
        sigma_max: largest size of noise.
        second_sigma: noise of the second step of sampling; 0.821 is that of the second paper for CIFAR-10.
        s0: intervals between the sigmas at first; 10 if None, or 2 for plain training.
        s1: intervals at last; 1280 if None, or 150 for plain training.
        mu0: decay of the teacher at first.
        features: network whose features the Frechet distance compares, such as a trained classifier; the samples' own
            numbers if None.
        num_pictures: number of samples in a picture; 0 logs none.
        compile: see `Method`.
        **kwargs: see `Method`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        improved: bool = True,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        second_sigma: float = 0.821,
        s0: int | None = None,
        s1: int | None = None,
        mu0: float = 0.95,
        features: Network | None = None,
        num_pictures: int = 16,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        self._features = [features]  # no submodule; `Method` calls make_metrics
        precond = ConsistencyPrecond(network, sigma_data=sigma_data, sigma_min=sigma_min)
        super().__init__(precond, **kwargs)  # type: ignore[arg-type]
        if not sigma_min <= second_sigma <= sigma_max:
            raise ValueError(f"second_sigma must lie in [sigma_min, sigma_max], got {second_sigma}")
        if num_pictures < 0:
            raise ValueError(f"num_pictures must be at least 0, got {num_pictures}")
        self.improved = improved
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.second_sigma = second_sigma
        self.s0 = s0 if s0 is not None else 10 if improved else 2
        self.s1 = s1 if s1 is not None else 1280 if improved else 150
        self.mu0 = mu0
        self.num_pictures = num_pictures
        self._planned_steps = 1
        karras_sigmas(2, sigma_min=sigma_min, sigma_max=sigma_max)  # these check
        self.num_sigmas(0)
        consistency_teacher_decay(2, mu0=mu0)
        self._run = torch.compile(_run) if compile else _run
        self._grid: tuple[Tensor, Tensor] | None = None

    def num_sigmas(self, step: int) -> int:
        """Number of sigmas in an optimizer step of this fit."""
        schedule = ict_discretization_steps if self.improved else progressive_discretization_steps
        return schedule(step, self._planned_steps, s0=self.s0, s1=self.s1)

    def forward(self, x: Tensor) -> Tensor:
        """Makes samples ``[N, ...]`` of standard normal noise, in one step."""
        return self.sample([x])

    def sample(self, noise: list[Tensor]) -> Tensor:
        """Makes samples ``[N, ...]`` in one step or in two, as many as there are tensors of standard normal noise."""
        sigmas = (self.sigma_max, self.second_sigma)[: len(noise)]
        return consistency_sample(self.network, noise, sigmas, sigma_min=self.sigma_min)

    def compute(self, batch: Batch) -> Outputs:
        """Returns what the network makes of the noisier samples, and ``extra["losses"]``."""
        require_keys(batch, "input", "index", user="ConsistencyTraining")
        x = batch["input"]
        keys = self._keys(batch["index"], step=self.global_step if self.training else _EVALUATION)
        low, high = self._draw_sigmas(keys, x)
        noise = normal(keys, *x.shape[1:], stream=_NOISE).to(x.dtype)
        teacher = self.frozen.get("teacher") if self.training else None
        denoised: list[Tensor] = []

        def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
            denoised.append(self._run(self.network, noisy, sigma))
            return denoised[0]

        losses = consistency_training_loss(
            denoise,
            lambda noisy, sigma: self._run(self.network if teacher is None else teacher, noisy, sigma),
            x,
            high,
            low,
            noise,
            distance="pseudo_huber" if self.improved else "mse",
            weighting="inverse_gap" if self.improved else "uniform",
            reduction="none",
        )
        return Outputs(logits=denoised[0], extra={"losses": losses})

    def loss_terms(self, batch: Batch, outputs: Outputs) -> Terms:
        """Returns the mean of the losses as ``task``."""
        return {"task": outputs.extra["losses"].mean()}

    def make_metrics(self) -> dict[str, Metric]:
        """Frechet distances of samples made in one step and in two."""
        return {
            "frechet_distance": FrechetDistance(*self._features),
            "frechet_distance_two_step": FrechetDistance(*self._features),
        }

    def update_metrics(self, metrics: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Makes as many samples as the batch has."""
        noise = self._sampling_noise(batch["index"], batch["input"])
        metrics["frechet_distance"].update(batch["input"], self.sample(noise[:1]))
        metrics["frechet_distance_two_step"].update(batch["input"], self.sample(noise))

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Returns a sample, made in one step, as ``output``, and the ``index``."""
        return {
            "output": self.sample(self._sampling_noise(batch["index"], batch["input"])[:1]),
            "index": batch["index"],
        }

    # ---- life of a fit

    def setup(self, stage: str) -> None:
        """Makes the teacher of plain training."""
        if stage == "fit" and not self.improved and "teacher" not in self.frozen:
            self.attach_frozen("teacher", EMATeacher(self.network, decay=self._teacher_decay), save=True)

    def on_fit_start(self) -> None:
        """Counts the steps of the fit.

        Raises:
            MisconfigurationException: it has no end.
        """
        super().on_fit_start()
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise MisconfigurationException(
                "ConsistencyTraining plans its sigmas: set trainer.max_epochs or trainer.max_steps"
            )
        self._planned_steps = int(steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Moves the teacher when the optimizer has made its step, and before a checkpoint may be saved."""
        super().optimizer_step(*args, **kwargs)
        if "teacher" in self.frozen:
            cast(EMATeacher, self.frozen["teacher"]).update(self.network, self.global_step + 1)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs samples as pictures, once in a validation."""
        if batch_idx or not self.num_pictures or self.trainer.sanity_checking or batch["input"].ndim != 4:
            return
        index, x = batch["index"][: self.num_pictures], batch["input"][: self.num_pictures]
        noise = self._sampling_noise(index, x)
        rows = [self.sample(noise[:1]), self.sample(noise)]
        log_pictures(self.trainer.loggers, "samples", rows, step=self.global_step)

    # ---- inner workings

    def _keys(self, index: Tensor, *, step: int) -> Tensor:
        return sample_keys(getattr(self.datamodule, "seed", 0), step, index)

    def _draw_sigmas(self, keys: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours among the sigmas of this step, the lower and the higher ones, ``[N]`` each."""
        number = self.num_sigmas(self.global_step if self.training else self._planned_steps)
        if self._grid is None or len(self._grid[0]) != number or self._grid[0].device != x.device:
            sigmas = karras_sigmas(number, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
            shares = lognormal_sigma_probabilities(sigmas) if self.improved else torch.ones(number - 1).double()
            self._grid = sigmas.to(x.device), (shares / shares.sum()).cumsum(0).to(x.device)
        sigmas, shares = self._grid
        lower = torch.searchsorted(shares[:-1], uniform(keys, stream=_SIGMA).double(), right=True)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return sigmas[lower].to(dtype), sigmas[lower + 1].to(dtype)

    def _sampling_noise(self, index: Tensor, x: Tensor) -> list[Tensor]:
        keys = self._keys(index, step=_EVALUATION)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return [normal(keys, *x.shape[1:], stream=_NOISE + step).to(dtype) for step in (1, 2)]

    def _teacher_decay(self, step: int) -> float:
        return consistency_teacher_decay(self.num_sigmas(step - 1), s0=self.s0, mu0=self.mu0)


def _run(network: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    return network(noisy, sigma)
