"""Mini-batch aware regularization (G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2017,
arXiv 1706.06978, equations 4 to 7): an L2 penalty on the rows of an embedding that a batch looks up."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["minibatch_aware_l2"]


def minibatch_aware_l2(weight: Tensor, index: Tensor, counts: Tensor, *, sparse: bool = False) -> Tensor:
    """``0.5 sum_j |w_j|^2 / counts_j`` over the different ids j of a batch: rare ids are held back most.

    Args:
        weight: embedding, ``[V, D]``.
        index: ids of the batch, integer, of any shape; each counts once.
        counts: how often each id occurs in the training set, ``[V]``; infinite for ids without penalty, such as
            padding. Where an id of the batch has 0, the result is infinite on a GPU (a check would wait for it).
        sparse: give the weight a sparse gradient, as `torch.nn.Embedding` with ``sparse=True`` does.

    Returns:
        Scalar, float32 at least.

    Raises:
        ValueError: the shapes do not fit, the ids are no integers, or (on a CPU) one of them has a count of 0.
    """
    if weight.ndim != 2 or counts.shape != weight.shape[:1]:
        raise ValueError(
            f"weight and counts must have shapes [V, D] and [V], got {tuple(weight.shape)} and {tuple(counts.shape)}"
        )
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must hold integers, got {index.dtype}")
    ids = index.flatten().sort().values  # [M]
    counts = counts[ids]
    if counts.device.type == "cpu" and (counts <= 0).any():
        raise ValueError(f"counts must be positive for all ids of the batch, but is not for {ids[counts <= 0][0]}")
    is_first = torch.cat([ids.new_ones(1, dtype=torch.bool), ids[1:] != ids[:-1]])[: len(ids)]
    rows = functional.embedding(ids, weight, sparse=sparse)  # [M, D]
    squares = rows.to(torch.promote_types(rows.dtype, torch.float32)).square().sum(-1)
    return 0.5 * (squares * (is_first / counts).to(squares.dtype)).sum()
