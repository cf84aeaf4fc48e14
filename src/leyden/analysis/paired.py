"""How far a method's numbers lie from a baseline's, where both were measured in the same seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["PairedDifference", "paired_difference"]


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two paired samples, method minus baseline.

    Attributes:
        n: number of pairs.
        mean: of the differences.
        std: of the differences, with ``n - 1`` in the denominator; None for one pair.
        interval: of the mean, by Student's t; None for one pair.
        bootstrap: of the mean, by the percentiles of resampled means; None for one pair.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    bootstrap: tuple[float, float] | None


def paired_difference(
    baseline: Sequence[float],
    method: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Mean of the paired differences with its confidence intervals.

    Args:
        baseline: one number per pair.
        method: as many.
        confidence: of the intervals, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the samples are empty or not of one length, or ``confidence`` is out of range.
    """
    if len(baseline) != len(method) or not baseline:
        raise ValueError(f"baseline and method must be of one length, not 0; they have {len(baseline)}, {len(method)}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    differences = np.asarray(method, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return PairedDifference(1, mean, None, None, None)
    std = float(differences.std(ddof=1))
    margin = float(stats.t.ppf(0.5 + confidence / 2, df=n - 1)) * std / math.sqrt(n)
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return PairedDifference(n, mean, std, (mean - margin, mean + margin), (float(low), float(high)))
