"""Power laws of losses (A. Komatsuzaki, "One Epoch Is All You Need", 2019, arXiv 1906.06669)."""

from collections.abc import Sequence

import numpy as np

__all__ = ["fit_power_law"]


def fit_power_law(steps: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """Fits ``loss = a * step^-b`` by least squares of the logarithms.

    The warm-up, and the end of a decaying learning rate, are not of this form: leave them out. A law with an asymptote
    is `fit_saturating_power_law`.

    Args:
        steps: positive.
        losses: as many, positive.

    Returns:
        a and b.

    Raises:
        ValueError: there are less than two different steps, their number is not that of the losses, or a number is not
            positive.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"steps and losses must be as many numbers, got the shapes {x.shape} and {y.shape}")
    for name, values in (("steps", x), ("losses", y)):
        if not (np.isfinite(values).all() and (values > 0.0).all()):
            raise ValueError(f"{name} must be positive and finite")
    if len(np.unique(x)) < 2:
        raise ValueError(f"steps must be two different numbers or more, got {x.tolist()}")
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(intercept)), float(-slope)
