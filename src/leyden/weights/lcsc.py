"""Search for the coefficients of a linear combination of checkpoints (E. Liu et al., "Linear Combination of Saved
Checkpoints Makes Consistency and Diffusion Models Better", 2024, arXiv 2404.02241; the authors' code,
imagination-research/LCSC, is without the search).

Unverified: the shares of the two kinds of children, and probability and size of the mutations. Their size is drawn from
two decades here, so that there is progress also late in a search.
"""

from bisect import insort
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leyden.weights.combine import ema_coefficients

__all__ = ["lcsc_search"]


@torch.no_grad()
def lcsc_search(
    evaluate: Callable[[Tensor], float],
    num_checkpoints: int,
    *,
    iterations: int = 2000,
    parents: int = 50,
    decays: Sequence[float] = (0.0, 0.5, 0.9, 0.95, 0.99),
    mutation_std: float = 0.1,
    mutation_prob: float = 0.5,
    known: Sequence[float] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Evolutionary search among coefficients that sum to 1; they may be negative, or above 1.

    It begins with the coefficients of moving averages. A child of two of the best is a mixture or the mean of them,
    some entries get noise, and the first is what the others leave of 1.

    Args:
        evaluate: maps coefficients, float64 ``[K]``, to what shall be least, always by the same samples; NaN is worst.
        num_checkpoints: K.
        iterations: number of children.
        parents: number of the best of whom children are made.
        decays: of the first moving averages; 0 is the last checkpoint alone.
        mutation_std: largest standard deviation of the noise; each child's is drawn from there to a hundredth of it.
        mutation_prob: with which an entry gets noise.
        known: what ``evaluate`` returned for the first coefficients of the same search before: it goes on behind them.
        generator: of random numbers.

    Returns:
        The best coefficients, and what ``evaluate`` returned for them.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_checkpoints < 1:
        raise ValueError(f"num_checkpoints must be at least 1, got {num_checkpoints}")
    if iterations < 0 or parents < 1:
        raise ValueError(f"iterations must be at least 0 and parents at least 1, got {iterations} and {parents}")
    if not decays:
        raise ValueError("decays must name at least one moving average to begin with, got none")
    if not mutation_std > 0.0 or not 0.0 <= mutation_prob <= 1.0:
        raise ValueError(
            f"mutation_std must be positive and mutation_prob lie in [0, 1], got {mutation_std} and {mutation_prob}"
        )
    found: list[tuple[float, int, Tensor]] = []  # the best first; of equals, the first that was found
    values = iter(known)

    def add(coefficients: Tensor) -> None:
        value = next(values, None)
        value = float(evaluate(coefficients)) if value is None else value
        insort(found, (value if value == value else torch.inf, len(found), coefficients))

    def draw(count: int) -> Tensor:
        return torch.rand(count, dtype=torch.float64, generator=generator)

    for decay in decays:
        add(ema_coefficients(num_checkpoints, decay))
    for _ in range(iterations if num_checkpoints > 1 else 0):
        pool = [coefficients for _, _, coefficients in found[:parents]]
        kind, size, *places = draw(4).tolist()
        first, second = (pool[int(place * len(pool))] for place in places)
        mixed = torch.where(draw(num_checkpoints) < 0.5, first, second)
        child = mixed if kind < 0.5 else 0.5 * (first + second)
        noise = torch.randn(num_checkpoints, dtype=torch.float64, generator=generator)
        child = child + mutation_std * 10.0 ** (-2.0 * size) * noise * (draw(num_checkpoints) < mutation_prob)
        child[0] = 1.0 - child[1:].sum()
        add(child)
    value, _, best = found[0]
    return best, value
