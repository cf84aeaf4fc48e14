"""DAREx-q: by what to divide the entries that DARE leaves (W. Deng et al., 2024, arXiv 2410.09344, section 4.1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["darex_q", "search_rescale"]

STEP = 0.001


def darex_q(contributions: Tensor, drop_rate: float, *, eta: float = 0.45, prob: float = 0.95) -> Tensor:
    """Chooses a divisor for each output of a linear layer, from what its changed weights add on average (appendix B).

    Minimises ``|eta (1 - (1-p)/q) sum_j c_j + eta^2 Phi(p) sum_j c_j^2 / (4 q^2) + ln(2 / (1-prob))|`` over a grid of q
    in steps of 0.001 from ``1 - p`` to below 1, of equal values the largest q; ``Phi(p) = (1-2p) / ln((1-p)/p)``.

    Args:
        contributions: change of each weight times the mean of its input, ``[out, in]``; the change of the bias is one
            more column.
        drop_rate: p, in (0, 1).
        eta: weighs the two errors; the paper chooses it on validation data.
        prob: probability of the bound.

    Returns:
        q, float64 ``[out]``; the paper divides a layer by their mean.

    Raises:
        ValueError: a number is out of range, or ``contributions`` is no matrix.
    """
    if contributions.ndim != 2:
        raise ValueError(f"contributions must have the shape [out, in], got {tuple(contributions.shape)}")
    if not STEP <= drop_rate < 1.0:
        raise ValueError(f"drop_rate must lie in [{STEP}, 1), got {drop_rate}")
    if not eta > 0.0 or not 0.0 < prob < 1.0:
        raise ValueError(f"eta must be positive and prob lie in (0, 1), got {eta} and {prob}")
    c = contributions.double()
    first, second = c.sum(1), c.square().sum(1)  # [out]
    p = drop_rate
    phi = 0.5 if abs(p - 0.5) < 1e-6 else (1.0 - 2.0 * p) / math.log((1.0 - p) / p)
    # 1e-9: rounding must not cut a step off
    q = STEP * torch.arange(math.floor((1.0 - p) / STEP + 1e-9), 999, dtype=torch.float64, device=c.device)  # [G]
    q = q[q > 0].unsqueeze(1)  # [G, 1]
    bound = eta * (1.0 - (1.0 - p) / q) * first + eta**2 * phi * second / (4.0 * q**2) + math.log(2.0 / (1.0 - prob))
    last = len(q) - 1 - bound.abs().flip(0).argmin(0)
    return q[last, 0]


def search_rescale(
    evaluate: Callable[[float], float], drop_rate: float, *, upper: float = 1.0, steps: int = 20
) -> float:
    """Finds one divisor for the whole model by trying them (global DAREx-q).

    Args:
        evaluate: loss, or change of the outputs, of the model that is pruned with this ``rescale``; lower is better.
        drop_rate: p; the smallest value tried is ``1 - p``, which is DARE.
        upper: the largest value tried.
        steps: number of values, each the same multiple of the one before: near ``1 - p`` the best lies between close
            values.

    Returns:
        The best, of equal ones the smallest.

    Raises:
        ValueError: a number is out of range.
    """
    if not 0.0 <= drop_rate < 1.0:
        raise ValueError(f"drop_rate must lie in [0, 1), got {drop_rate}")
    if upper < 1.0 - drop_rate or steps < 1:
        raise ValueError(f"upper must be at least {1.0 - drop_rate:g} and steps at least 1, got {upper} and {steps}")
    lowest = 1.0 - drop_rate
    tried = [lowest * (upper / lowest) ** (number / max(steps - 1, 1)) for number in range(steps)]
    losses = [evaluate(value) for value in tried]
    finite = [number for number, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise ValueError(f"evaluate gave no finite loss, but {losses[0]}")
    return tried[min(finite, key=losses.__getitem__)]
