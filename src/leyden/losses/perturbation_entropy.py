"""Entropy of the perturbations of hyperparameters (M. MacKay, P. Vicol, J. Lorraine, D. Duvenaud, R. Grosse,
"Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions", 2019, arXiv
1903.03088, section 3.3)."""

import math

from torch import Tensor
from torch.nn import functional

__all__ = ["perturbation_entropy"]


def perturbation_entropy(raw_scale: Tensor) -> Tensor:
    """Entropy in nats of a normal distribution with independent entries, ``sum log(scale sqrt(2 pi e))``.

    Args:
        raw_scale: ``[H]``; the standard deviation is its softplus.
    """
    return (functional.softplus(raw_scale).log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum()
