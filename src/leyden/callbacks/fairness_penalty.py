"""Independence of protected attributes (H. M. Lee, K. Antonio, B. Avanzi, L. Marchi, R. Zhou, "Machine Learning with
Multitype Protected Attributes: Intersectional Fairness through Regularisation", 2025, arXiv 2509.08163)."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core import (
    Batch,
    Method,
    MethodCallback,
    Outputs,
    Terms,
    all_gather_rows,
    all_gather_rows_with_grad,
    require_keys,
)
from leyden.losses import concatenated_distance_covariance, joint_distance_covariance
from leyden.metrics import DistanceCorrelation

__all__ = ["FairnessPenalty"]


class FairnessPenalty(MethodCallback):
    """Adds ``fairness``, an unbiased estimate of how far the prediction depends on protected attributes.

    The prediction is the output of a regression, and the probability of class 1 or, of more than two classes, of each.
    An integer attribute is a category; a floating-point one, ``[N]`` or ``[N, p]``, is taken as it is, so give it a
    standard deviation of about 1. The estimate is that of the rows of all processes, of one micro-batch: some 64 rows
    or more make it precise. Its sign may be either where there is hardly any dependence left.

    ``val/dcor`` and ``test/dcor`` are the squared distance correlation of prediction and all attributes, over the whole
    set: memory goes with the square of its size.

    Args:
        attributes: keys of the batch.
        weight: factor of the term; 0 only measures. To be chosen by the accuracy that one is ready to pay.
        measure: ``"ccdcov"`` (`leyden.losses.concatenated_distance_covariance`) or ``"jdcov"``
            (`leyden.losses.joint_distance_covariance`).
        c: as in `leyden.losses.joint_distance_covariance`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, attributes: Sequence[str], weight: float = 1.0, *, measure: str = "ccdcov", c: float = 1.0
    ) -> None:
        if weight < 0.0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if isinstance(attributes, str) or not len(attributes):
            raise ValueError(f"attributes must be a list of one or more keys of the batch, got {attributes!r}")
        if measure not in ("ccdcov", "jdcov"):
            raise ValueError(f"measure must be 'ccdcov' or 'jdcov', got {measure!r}")
        if not c > 0.0:
            raise ValueError(f"c must be positive, got {c}")
        self.weight = weight
        self.attributes = tuple(attributes)
        self.measure = measure
        self.c = c
        self._num_classes: int | None = None
        self._correlation = DistanceCorrelation(len(self.attributes))

    def build(self, method: Method) -> None:
        """Asks the DataModule for the number of classes.

        Raises:
            MisconfigurationException: there is none to ask, or it does not say.
        """
        datamodule = method.datamodule
        if datamodule is None or not hasattr(datamodule, "num_classes"):
            raise MisconfigurationException(
                "FairnessPenalty needs a DataModule with num_classes (None for a regression) to know what the outputs "
                "are: give the trainer a leyden.data.DataModule"
            )
        self._num_classes = datamodule.num_classes

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        """Adds ``fairness``."""
        attributes = self._attributes(batch)
        if self.weight == 0.0:
            return terms
        prediction = all_gather_rows_with_grad(self._prediction(outputs.logits))
        attributes = [all_gather_rows(attribute) for attribute in attributes]
        if self.measure == "ccdcov":
            value = concatenated_distance_covariance(prediction, attributes, unbiased=True)
        else:
            value = joint_distance_covariance([prediction, *attributes], c=self.c, unbiased=True)
        return terms | {"fairness": self.weight * value}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Measures."""
        self._measure(batch, outputs["logits"])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Measures."""
        self._measure(batch, outputs["logits"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the correlation."""
        self._log(pl_module, "val/dcor")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the correlation."""
        self._log(pl_module, "test/dcor")

    def _measure(self, batch: Batch, logits: Tensor) -> None:
        self._correlation.to(logits.device)
        self._correlation.update(self._prediction(logits), *self._attributes(batch))

    def _log(self, pl_module: LightningModule, name: str) -> None:
        # every process has the same value
        pl_module.log(name, self._correlation.compute(), sync_dist=True, reduce_fx="max")
        self._correlation.reset()

    def _attributes(self, batch: Batch) -> list[Tensor]:
        require_keys(batch, *self.attributes, user="FairnessPenalty")
        return [batch[name] for name in self.attributes]

    def _prediction(self, logits: Tensor) -> Tensor:
        if self._num_classes is None:
            return logits
        probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return probabilities[:, 1:] if logits.shape[-1] == 2 else probabilities
