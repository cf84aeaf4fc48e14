"""Calibration after training (Y. Liu, L. Wang, Y. Zou, J. Zou, L. Zheng, "Optimizing Calibration by Gaining Aware of
Prediction Correctness", 2024, arXiv 2404.13016)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.utils import parametrize

from leyden.callbacks._changes_outputs import ChangesOutputs
from leyden.core import Batch, Method, Outputs, sample_keys
from leyden.data import Augment, DataModule
from leyden.losses import correctness_aware_loss
from leyden.nn import AdaptiveTemperature, transformed_topk_features

__all__ = ["PostHocCalibration"]


class PostHocCalibration(ChangesOutputs):
    """Divides the logits of test and prediction by a temperature per sample, fitted on the validation data.

    The temperature comes from what the network says of transformed versions of the input, by
    `leyden.nn.AdaptiveTemperature`, trained by `leyden.losses.correctness_aware_loss` and Adam. That is done when a
    test or a prediction begins, with the weights that it has: there is nothing to save. Predicted classes stay.
    Training and validation do not see it. How the transformed versions look is a function of the data's seed and the
    sample.

    Args:
        views: how the transformed versions are made; the authors rotate, grey and jitter colors.
        k: the versions' probabilities of so many classes, the likeliest ones of the original, are looked at.
        hidden: as in `leyden.nn.AdaptiveTemperature`.
        balanced: as in `leyden.losses.correctness_aware_loss`.
        lr: of Adam.
        epochs: over the validation data.
        batch_size: of Adam; the last batch of an epoch may be smaller.

    Raises:
        ValueError: there is no view, or a number is out of range.
    """

    def __init__(
        self,
        views: Sequence[Augment],
        *,
        k: int = 4,
        hidden: int = 5,
        balanced: bool = True,
        lr: float = 1e-4,
        epochs: int = 10,
        batch_size: int = 1000,
    ) -> None:
        if not views:
            raise ValueError("views must be one or more augmentations, got none")
        for name, value in (("k", k), ("hidden", hidden), ("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not lr > 0.0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.views = list(views)
        self.k = k
        self.hidden = hidden
        self.balanced = balanced
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.calibrator: AdaptiveTemperature | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that there are data to fit it on.

        Raises:
            MisconfigurationException: the data are no `leyden.data.DataModule`.
        """
        super().setup(trainer, pl_module, stage)
        data = cast(Method, pl_module).datamodule
        if not isinstance(data, DataModule):
            raise MisconfigurationException(
                f"PostHocCalibration reads the validation data of a leyden.data.DataModule, got {type(data).__name__}"
            )

    def begin(self, method: Method) -> Callable[[Batch], Outputs]:
        """Fits the temperature, by which outputs are changed from then on."""
        logits, features, target = method.with_whole_parameters(lambda: self._validation_outputs(method))
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(cast(DataModule, method.datamodule).seed)
            self.calibrator = self._fit(logits.clone(), features.clone(), target.clone())
        compute = method.compute

        def calibrated(batch: Batch) -> Outputs:
            outputs = compute(batch)
            logits = _wide(outputs.logits)
            assert self.calibrator is not None
            return replace(outputs, logits=self.calibrator(logits, self._features(method, batch, logits)))

        return calibrated

    def _validation_outputs(self, method: Method) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, features and targets of all validation samples, in each process."""
        data = cast(DataModule, method.datamodule)
        precision = method.trainer.precision_plugin
        parts = []
        for batch in data.all_batches("val"):
            batch = {key: value.to(method.device) for key, value in precision.convert_input(batch).items()}
            with precision.forward_context():
                logits = _wide(method.compute(batch).logits)
                parts.append((logits, self._features(method, batch, logits), batch["target"]))
        logits, features, target = (torch.cat(column) for column in zip(*parts, strict=True))
        return logits, features, target

    def _features(self, method: Method, batch: Batch, logits: Tensor) -> Tensor:
        seed = cast(DataModule, method.datamodule).seed
        probs = [logits.softmax(-1)]
        with parametrize.cached():
            for number, view in enumerate(self.views):
                changed = view(batch, sample_keys(seed, number, batch["index"]))
                probs.append(_wide(method.network(changed["input"])).softmax(-1))
        return transformed_topk_features(probs, self.k)

    def _fit(self, logits: Tensor, features: Tensor, target: Tensor) -> AdaptiveTemperature:
        calibrator = AdaptiveTemperature(features.shape[-1], self.hidden).to(logits)
        optimizer = torch.optim.Adam(calibrator.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(logits)).to(logits.device).split(self.batch_size):
                calibrated = calibrator(logits[rows], features[rows])
                loss = correctness_aware_loss(calibrated, logits[rows], target[rows], balanced=self.balanced)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return calibrator.requires_grad_(False)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
