"""Features of whole data sets within a fit, and steps that no optimizer makes."""

from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.core.batch import Batch
from leyden.core.evaluating import evaluating
from leyden.core.method import Method
from leyden.data.module import DataModule

__all__ = ["check_whole_data_sets", "count_step", "features_and_targets"]


@torch.no_grad()
def features_and_targets(method: Method, split: str) -> tuple[Tensor, Tensor]:
    """Of all samples of a split, on each process: features in evaluation mode, float64 ``[S, D]``, and targets."""
    data = cast(DataModule, method.datamodule)
    features, targets = [], []
    like = next(method.network.parameters())
    with evaluating(method.network):
        for batch in data.all_batches(split):
            features.append(method.network.features(batch["input"].to(like)).double())
            targets.append(batch["target"].to(method.device))
    return torch.cat(features), torch.cat(targets)


def check_whole_data_sets(method: Method) -> None:
    """Checks that no callback takes part in steps that solve problems of whole data sets.

    Raises:
        MisconfigurationException: one does.
    """
    if any(method._open_doors()):
        raise MisconfigurationException(
            f"{type(method).__name__} solves problems of whole data sets, in which callbacks cannot change batches or "
            "add loss terms: take out those that do"
        )


def count_step(method: Method, batch: Batch) -> Tensor:
    """Evaluates a batch after a step that no optimizer has made, and counts the step."""
    outputs, terms = method.terms_of(batch)
    optimizer = cast(Any, method.optimizers())
    optimizer.zero_grad()
    optimizer.step()  # without gradients: changes nothing
    return method.sum_terms(terms, num_samples=method.loss_count(batch, outputs)).detach()
