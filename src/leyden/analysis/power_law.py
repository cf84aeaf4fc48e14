"""Power laws that saturate (K. Kim, S. Kotha, P. Liang, T. Hashimoto, "Pre-training under infinite compute", 2025,
arXiv 2509.14786, section 2): what a recipe reaches with more and more parameters or members is judged by its asymptote.

Original code: marin-community/marin, ``experiments/data_efficiency/plotting.py``, which fits the same law by
`scipy.optimize.curve_fit`; here only the exponent is searched, because the law is linear in the two other numbers.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

__all__ = ["PowerLaw", "data_efficiency", "fit_saturating_power_law"]

SMALLEST, LARGEST = 1e-2, 10.0  # exponents


class PowerLaw(NamedTuple):
    """``y = scale / x^exponent + asymptote``."""

    scale: float
    exponent: float
    asymptote: float

    def predict(self, x: float) -> float:
        """Returns y at a positive x."""
        return self.scale / x**self.exponent + self.asymptote

    def inverse(self, y: float) -> float:
        """Returns the x at which the law has the value y.

        Raises:
            ValueError: the law never has it: y is on the other side of the asymptote, or is the asymptote.
        """
        ratio = self.scale / (y - self.asymptote) if y != self.asymptote else -1.0
        if not ratio > 0.0:
            raise ValueError(f"y must be a value that the law has, beyond its asymptote {self.asymptote:.6g}, got {y}")
        return ratio ** (1.0 / self.exponent)


def fit_saturating_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fits ``A / x^B + C`` by least squares, with B from 0.01 to 10; warns if B ends at a bound.

    Three points are fitted exactly where the law can: an asymptote read from few points is uncertain.

    Args:
        x: positive: parameters, members, tokens.
        y: as many losses.

    Raises:
        ValueError: there are less than three different x, their number is not that of y, or a number is not finite or
            an x not positive.
    """
    sizes, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if sizes.ndim != 1 or sizes.shape != values.shape:
        raise ValueError(f"x and y must be as many numbers, got the shapes {sizes.shape} and {values.shape}")
    if not (np.isfinite(sizes).all() and np.isfinite(values).all() and (sizes > 0.0).all()):
        raise ValueError("x must be positive and finite, and y finite")
    if len(np.unique(sizes)) < 3:
        raise ValueError(f"x must hold at least 3 different numbers, got {len(np.unique(sizes))}")
    middle = math.exp(np.log(sizes).mean())  # of x, by which it is divided: powers of large numbers would overflow

    def solve(log_exponent: float) -> tuple[float, np.ndarray]:
        design = np.stack([(sizes / middle) ** -math.exp(log_exponent), np.ones_like(sizes)], axis=1)
        numbers = np.linalg.lstsq(design, values, rcond=None)[0]
        return float(((design @ numbers - values) ** 2).sum()), numbers

    grid = np.linspace(math.log(SMALLEST), math.log(LARGEST), 200)
    best = int(np.argmin([solve(point)[0] for point in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(lambda point: solve(point)[0], bounds=bounds, method="bounded", options={"xatol": 1e-10})
    if best in (0, len(grid) - 1):
        warnings.warn(f"the exponent ends at a bound, {math.exp(found.x):.3g}: the law does not fit", stacklevel=2)
    exponent = math.exp(found.x)
    scale, asymptote = solve(found.x)[1]
    return PowerLaw(float(scale) * middle**exponent, exponent, float(asymptote))


def data_efficiency(loss: float, law: PowerLaw, *, used: float = 1.0) -> float:
    """How many times the data the reference recipe would need for a loss.

    Args:
        loss: that was reached.
        law: loss of the reference recipe by its amount of data.
        used: amount of data with which ``loss`` was reached, in the law's unit.

    Raises:
        ValueError: the reference recipe never reaches ``loss``, or ``used`` is not positive.
    """
    if not used > 0.0:
        raise ValueError(f"used must be positive, got {used}")
    return law.inverse(loss) / used
