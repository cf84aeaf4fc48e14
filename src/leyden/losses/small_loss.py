"""The choice of samples by small losses (B. Han et al., "Co-teaching: Robust Training of Deep Neural Networks with
Extremely Noisy Labels", 2018, arXiv 1804.06872, algorithm 1): a network fits true labels before it fits false ones."""

from torch import Tensor

__all__ = ["forget_rate_at", "small_loss_selection"]


def small_loss_selection(losses: Tensor, forget_rate: float) -> Tensor:
    """Returns the ``int((1 - forget_rate) * N)`` samples of smallest loss, from the smallest on.

    Args:
        losses: ``[N]``.
        forget_rate: share that is left out, in [0, 1).

    Returns:
        Positions, int64 ``[K]``.

    Raises:
        ValueError: ``forget_rate`` is out of range, or no sample would be left.
    """
    if not 0.0 <= forget_rate < 1.0:
        raise ValueError(f"forget_rate must lie in [0, 1), got {forget_rate}")
    num_kept = int((1.0 - forget_rate) * len(losses))
    if num_kept < 1:
        raise ValueError(f"forget_rate {forget_rate} leaves none of {len(losses)} samples: take larger batches")
    return losses.detach().argsort(stable=True)[:num_kept]


def forget_rate_at(epoch: int, *, rate: float = 0.2, gradual: int = 5) -> float:
    """Returns the share that is left out in an epoch: it grows from 0 in equal steps, and stays at ``rate``.

    Args:
        epoch: number of the epoch, counted from 0.
        rate: the final share.
        gradual: epochs of growth, the last of which has ``rate``; from 0 on all have it.
    """
    if epoch >= gradual:
        return rate
    return rate * epoch / max(gradual - 1, 1)
