"""Dynamic sparse no training (Y. Zhang et al., "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
2023, arXiv 2310.08915, section 3), and Wanda (M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning
Approach for Large Language Models", 2023, arXiv 2306.11695), from which it starts.

Original code: zyxxmu/DSnoT, ``lib/prune.py``. Its default leaves out the condition on the sign that the paper has. It
goes on to write into the mask of rows that have stopped or have nothing left to swap; here these stay as they are.
"""

import torch
from torch import Tensor

from leyden.weights.prune import nm_mask

__all__ = ["dsnot_mask", "wanda_mask"]


def wanda_mask(weight: Tensor, input_sq: Tensor, sparsity: float | tuple[int, int]) -> Tensor:
    """Marks, in every row, the weights with the largest ``|weight| * sqrt(input_sq)``.

    Args:
        weight: ``[O, I]``.
        input_sq: sum (or mean) of the squares of every input, ``[I]``; ones to go by the magnitude alone.
        sparsity: share of a row that is pruned, rounded down; or ``(n, m)`` to keep n of every m inputs.

    Returns:
        bool, ``[O, I]``: True where a weight is kept; of equal ones that with the higher index.

    Raises:
        ValueError: shapes do not fit, or ``sparsity`` is out of range.
    """
    _check_shapes(weight, input_sq=input_sq)
    importance = weight.detach().abs().float() * input_sq.float().sqrt()
    if isinstance(sparsity, tuple | list):
        return nm_mask(importance, *sparsity)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    order = importance.argsort(dim=1, stable=True)
    keep = torch.zeros_like(importance, dtype=torch.bool)
    return keep.scatter_(1, order[:, int(sparsity * weight.shape[1]) :], True)


def dsnot_mask(
    weight: Tensor,
    keep: Tensor,
    *,
    input_sum: Tensor,
    input_var: Tensor,
    input_sq: Tensor,
    max_cycles: int = 50,
    threshold: float = 0.1,
    var_power: float = 1.0,
    same_sign: bool = False,
    pattern: tuple[int, int] | None = None,
) -> Tensor:
    """Swaps kept and pruned weights, row by row, until the rows' outputs are nearly what they were on average.

    With the contributions ``C = weight * input_sum``, a row's error is the sum of C over what is pruned. Each cycle
    brings back the pruned weight whose ``C / input_var ** var_power`` is the largest of the error's sign, and prunes
    the kept one, of the opposite sign of C, whose ``|weight| * sqrt(input_sq)`` is the smallest. A row stops for good
    when its error is small or one of the two is not to be had.

    Args:
        weight: ``[O, I]``; is not changed.
        keep: mask from which to start, bool ``[O, I]``.
        input_sum: sum of every input over samples and tokens, over the number of samples, ``[I]``.
        input_var: variance of every input, over all tokens, ``[I]``.
        input_sq: sum of squares, over the number of samples, ``[I]``.
        max_cycles: most swaps in a row.
        threshold: error, in units of the layer's output, at which a row stops.
        var_power: how much weights of steady inputs are preferred.
        same_sign: whether a row stops before a swap that would change the sign of its error.
        pattern: ``(n, m)`` of ``keep``, which is preserved: the weight to be pruned is the smallest of the same group
            of m, whatever its sign, and ``same_sign`` holds.

    Returns:
        bool, ``[O, I]``, with as many kept weights in every row (and group) as ``keep``.

    Raises:
        ValueError: shapes do not fit, or ``max_cycles`` is negative.
    """
    _check_shapes(weight, input_sum=input_sum, input_var=input_var, input_sq=input_sq)
    if keep.shape != weight.shape or keep.dtype != torch.bool:
        raise ValueError(f"keep must be bool {tuple(weight.shape)} as weight, got {keep.dtype} {tuple(keep.shape)}")
    if max_cycles < 0:
        raise ValueError(f"max_cycles must be at least 0, got {max_cycles}")
    weight = weight.detach().float()
    contribution = weight * input_sum.float()  # [O, I]
    importance = (weight.abs() * input_sq.float().sqrt()).masked_fill(~keep, torch.inf)
    lost = contribution.masked_fill(keep, 0.0)
    error = lost.sum(1)  # [O]
    first_sign = error.sign()

    # candidates to bring back, best first: those with positive C for rows with a positive error, and the others
    per_variance = (lost / input_var.float() ** var_power).nan_to_num(0.0, torch.inf, -torch.inf)
    ascending = per_variance.argsort(dim=1, stable=True)
    grow_orders = ascending.flip(1), ascending
    num_grow = (per_variance > 0.0).sum(1), (per_variance < 0.0).sum(1)
    # candidates to be pruned, least important first: those with negative C for rows whose error is not negative
    by_importance = importance.argsort(dim=1, stable=True)
    signs = contribution.masked_fill(~keep, 0.0).gather(1, by_importance).sign()
    prune_orders = [by_importance.gather(1, (signs != sign).long().argsort(dim=1, stable=True)) for sign in (-1, 1)]
    num_prune = (signs == -1).sum(1), (signs == 1).sum(1)

    keep = keep.clone()
    rows = torch.arange(len(weight), device=weight.device)
    used = torch.zeros(4, len(weight), dtype=torch.long, device=weight.device)  # of the four orders
    active = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    last = weight.shape[1] - 1
    for _ in range(max_cycles):
        is_positive, is_negative = error > 0.0, error < 0.0
        place = torch.where(is_positive, used[0], used[1])
        upper, lower = (order[rows, place.clamp(max=last)] for order in grow_orders)
        grow = torch.where(is_positive, upper, lower)
        active = active & (error.abs() > threshold) & (place < torch.where(is_positive, num_grow[0], num_grow[1]))
        if pattern is None:
            place = torch.where(is_negative, used[3], used[2])
            below, above = (order[rows, place.clamp(max=last)] for order in prune_orders)
            prune = torch.where(is_negative, above, below)
            active = active & (place < torch.where(is_negative, num_prune[1], num_prune[0]))
        else:
            m = pattern[1]
            group = (grow // m * m).unsqueeze(1) + torch.arange(m, device=weight.device)  # [O, m]
            smallest, within = importance.gather(1, group).min(1)
            prune = grow // m * m + within
            active = active & smallest.isfinite()
            importance[rows, prune] = torch.inf
        after = error + contribution[rows, prune] - contribution[rows, grow]
        if same_sign or pattern is not None:
            active = active & (after.sign() == first_sign)
        if not active.any():
            break
        keep[rows[active], grow[active]] = True
        keep[rows[active], prune[active]] = False
        used += torch.stack([is_positive, ~is_positive, ~is_negative, is_negative])
        error = torch.where(active, after, error)
    return keep


def _check_shapes(weight: Tensor, **statistics: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight must be [O, I], got {tuple(weight.shape)}")
    for name, value in statistics.items():
        if value.shape != weight.shape[1:]:
            raise ValueError(f"{name} must be [{weight.shape[1]}], one number per input, got {tuple(value.shape)}")
