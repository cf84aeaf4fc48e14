"""EL2N, how hard a sample is (M. Paul et al., "Deep Learning on a Data Diet", 2021, arXiv 2107.07075, section 2.2)."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["el2n_scores"]


def el2n_scores(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the Euclidean length of ``softmax(logits) - one_hot(target)``; 0 for a sure and right prediction.

    The paper averages it over networks of several seeds, early in training.

    Args:
        logits: ``[..., N, C]``; leading dimensions are averaged over.
        target: class numbers, int64 ``[N]``.

    Returns:
        ``[N]``, in float32 at least.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.ndim < 2 or logits.shape[-2:-1] != target.shape:
        raise ValueError(
            f"logits [..., N, C] and target [N] must fit, got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    error = probability - functional.one_hot(target, logits.shape[-1])
    return error.norm(dim=-1).flatten(0, -2).mean(0) if logits.ndim > 2 else error.norm(dim=-1)
