"""Early-learning regularization (S. Liu, J. Niles-Weed, N. Razavian, C. Fernandez-Granda, "Early-Learning
Regularization Prevents Memorization of Noisy Labels", 2020, arXiv 2007.00151, section 4).

A network learns the true labels before it memorises the false ones: a running mean of its own predictions is a target
that holds it to what it learned first.
"""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["ELRLoss", "elr_loss", "elr_update"]


def elr_update(memory: Tensor, logits: Tensor, *, momentum: float = 0.7) -> Tensor:
    """Moves the targets towards the present predictions, ``t <- m t + (1 - m) p / sum(p)``.

    Args:
        memory: targets of the N examples, ``[N, C]``; zero before their first update.
        logits: present scores, ``[N, C]``.
        momentum: m, the share of the old target that is kept.

    Returns:
        The new targets, ``[N, C]``, detached; after k updates from zero a row sums to ``1 - m^k``.

    Raises:
        ValueError: the shapes differ, or ``momentum`` is outside of [0, 1].
    """
    _check_shapes(logits, memory)
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    probabilities = _clamped_softmax(logits.detach())  # [N, C]
    return momentum * memory.detach() + (1.0 - momentum) * probabilities / probabilities.sum(-1, keepdim=True)


def elr_loss(logits: Tensor, memory: Tensor, *, reduction: str = "mean") -> Tensor:
    """Reward for agreeing with the target, ``log(1 - <t, p>)``: zero or less, and lower where they agree.

    Args:
        logits: scores before softmax, ``[N, C]``.
        memory: targets t that `elr_update` made, ``[N, C]``, rows summing to 1 or less; get no gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes differ, or another ``reduction``.
    """
    _check_shapes(logits, memory)
    agreement = (memory.detach() * _clamped_softmax(logits)).sum(-1)  # [N], at most 1 - 1e-4
    return reduce_loss(torch.log1p(-agreement), reduction)


class ELRLoss(nn.Module):
    """Module twin of `elr_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, memory: Tensor) -> Tensor:
        """Returns the loss."""
        return elr_loss(logits, memory, reduction=self.reduction)


def _clamped_softmax(logits: Tensor) -> Tensor:
    # The clamp, the authors' own, keeps 1 - <t, p> above zero; the rows are not normalised again.
    probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return probabilities.clamp(1e-4, 1.0 - 1e-4)


def _check_shapes(logits: Tensor, memory: Tensor) -> None:
    if logits.shape != memory.shape:
        raise ValueError(f"memory must have the shape of logits, {tuple(logits.shape)}, got {tuple(memory.shape)}")
