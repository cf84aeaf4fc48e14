"""Splits of a data set as pure functions of a seed, the same on every machine and with every version of PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from leyden.core.random import sample_keys, uniform

__all__ = ["shuffled_order", "split_indices", "stratified_order"]


def shuffled_order(num_samples: int, seed: int) -> Tensor:
    """Returns a random permutation of ``0 .. num_samples - 1``, int64."""
    return uniform(sample_keys(seed, 0, torch.arange(num_samples))).argsort(stable=True)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Returns a random permutation in which the classes are spread evenly.

    Every prefix and every slice holds the classes in about their shares.

    Args:
        labels: class numbers, int64 ``[S]``.
        seed: which permutation.

    Returns:
        int64 ``[S]``.
    """
    order = shuffled_order(len(labels), seed)
    order = order[labels[order].argsort(stable=True)]  # by class, random within
    counts = labels.bincount()  # [C]
    ranks = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]  # number within the class
    quantiles = (ranks.to(torch.float64) + 0.5) / counts[labels[order]]
    return order[quantiles.argsort(stable=True)]


def split_indices(
    num_samples: int, fractions: Mapping[str, float], *, seed: int, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Splits sample numbers into ``train`` and named parts.

    Args:
        num_samples: size of the data set.
        fractions: share of each part that is split off, such as ``{"val": 0.1, "test": 0.2}``; the rest is ``train``.
        seed: which split.
        labels: class numbers, int64 ``[S]``, to be spread evenly over the parts.

    Returns:
        int64 positions by part, ``train`` first.

    Raises:
        ValueError: a part would be empty, or the shares leave nothing for ``train``.
    """
    counts = {}
    for name, fraction in fractions.items():
        counts[name] = round(num_samples * fraction)
        if not 0.0 < fraction < 1.0 or counts[name] == 0:
            raise ValueError(
                f"{name}_fraction must lie in (0, 1) and give at least one of the {num_samples} samples, got {fraction}"
            )
    num_train = num_samples - sum(counts.values())
    if num_train < 1:
        shares = " and ".join(f"{name}_fraction={fraction}" for name, fraction in fractions.items())
        raise ValueError(f"{shares} leave no training sample of {num_samples} samples")
    order = shuffled_order(num_samples, seed) if labels is None else stratified_order(labels, seed)
    parts = order.split([num_train, *counts.values()])
    return dict(zip(["train", *counts], parts, strict=True))
