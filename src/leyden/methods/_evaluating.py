"""Evaluation mode within a fit."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from leyden.core.method import Method
from leyden.data.loader import EvalLoader
from leyden.data.module import DataModule
from leyden.data.sampler import eval_batches

__all__ = ["evaluating", "features_and_targets"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and every part of it back into its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def features_and_targets(method: Method, split: str) -> tuple[Tensor, Tensor]:
    """Of all samples of a split, on each process: features in evaluation mode, float64 ``[S, D]``, and targets."""
    data = cast(DataModule, method.datamodule)
    dataset = data.dataset(split)
    size = len(cast(Sized, dataset))
    features, targets = [], []
    like = next(method.network.parameters())
    with evaluating(method.network):
        for batch in EvalLoader(dataset, eval_batches(size, min(data.eval_batch_size, size))):
            features.append(method.network.features(batch["input"].to(like)).double())
            targets.append(batch["target"].to(method.device))
    return torch.cat(features), torch.cat(targets)
