"""Graphs of samples (Z. Rustamov, A. Zaitouny, N. Zaki, "Scalable Graph Attention-based Instance Selection via
Mini-Batch Sampling and Hierarchical Hashing", 2025, arXiv 2502.20293): batches of samples, and who sees whom in one.

The authors' code is not published. What the hashes' candidates are filtered by is unverified; here all are edges.
"""

import math

import torch
from torch import Tensor

from leyden.data.splits import shuffled_order

__all__ = ["distance_graph", "hyperplane_hash", "stratified_batches"]


def stratified_batches(targets: Tensor, batch_size: int, *, seed: int = 0) -> list[Tensor]:
    """Splits samples at random into as few batches as may be, each with all classes in their shares.

    The counts of a class in two batches, and the sizes of two batches, differ by one at most.

    Args:
        targets: class numbers, int64 ``[S]``.
        batch_size: samples in a batch, at most.
        seed: which split.

    Returns:
        Positions, int64, of each batch.

    Raises:
        ValueError: ``batch_size`` is below 1, or there are no class numbers.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if targets.ndim != 1 or targets.is_floating_point() or not len(targets):
        raise ValueError(f"targets must be class numbers [S], got {targets.dtype} {tuple(targets.shape)}")
    order = shuffled_order(len(targets), seed)
    order = order[targets[order].argsort(stable=True)]  # by class, random within: dealt like cards
    count = math.ceil(len(targets) / batch_size)
    return [order[number::count] for number in range(count)]


def distance_graph(x: Tensor, *, quantile: float = 0.1) -> Tensor:
    """Connects the nearest pairs of samples.

    Args:
        x: features ``[N, D]``; standardised, so that none decides alone.
        quantile: share of all pairs that are connected (more if there are equal distances).

    Returns:
        Symmetric bool ``[N, N]`` without loops.

    Raises:
        ValueError: ``x`` has another shape, or ``quantile`` is not in (0, 1].
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
    if x.ndim != 2:
        raise ValueError(f"x must be [N, D], got {tuple(x.shape)}")
    graph = torch.zeros(len(x), len(x), dtype=torch.bool, device=x.device)
    if len(x) < 2:
        return graph
    distances = torch.pdist(x)  # of the pairs above the diagonal, row by row
    count = max(1, math.ceil(quantile * len(distances) - 1e-9))  # 0.28 * 25 is a little more than 7
    near = distances <= distances.kthvalue(count).values
    graph[tuple(torch.triu_indices(len(x), len(x), 1, device=x.device)[:, near])] = True
    return graph | graph.T


def hyperplane_hash(x: Tensor, bits: int, *, generator: torch.Generator) -> Tensor:
    """Numbers the cells into which random hyperplanes through the origin cut space; near samples often share one.

    Args:
        x: features ``[N, D]``.
        bits: number of hyperplanes, 1 to 62.
        generator: draws them.

    Returns:
        int64 ``[N]``.

    Raises:
        ValueError: ``x`` has another shape, or ``bits`` is out of range.
    """
    if not 1 <= bits <= 62:
        raise ValueError(f"bits must lie in 1..62, got {bits}")
    if x.ndim != 2:
        raise ValueError(f"x must be [N, D], got {tuple(x.shape)}")
    planes = torch.randn(x.shape[1], bits, generator=generator, dtype=x.dtype, device=generator.device)
    above = x @ planes.to(x.device) > 0.0  # [N, bits]
    return (above.to(torch.int64) << torch.arange(bits, device=x.device)).sum(1)
