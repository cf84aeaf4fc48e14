"""The exact policy gradient where a policy chooses once among a few actions (a contextual bandit): what reinforcement
learning estimates from samples, as a mean over all actions (R. Williams, "Simple statistical gradient-following
algorithms", 1992)."""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["ExpectedReward", "expected_reward_loss"]


def expected_reward_loss(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Minus the mean reward of actions that are drawn from ``softmax(logits)``.

    Args:
        logits: scores of the actions, ``[N, C]``; the softmax is taken in float32 at least.
        target: reward of each action, float ``[N, C]``, or the only one that has a reward, 1, int64 ``[N]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: shapes do not fit, or another ``reduction``.
    """
    if logits.ndim != 2 or target.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"logits and target must be [N, C] and [N] or [N, C], got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    policy = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    if target.ndim == 1:
        return reduce_loss(-policy.gather(-1, target.unsqueeze(-1)).squeeze(-1), reduction)
    return reduce_loss(-(policy * target.to(policy.dtype)).sum(-1), reduction)


class ExpectedReward(nn.Module):
    """Module twin of `expected_reward_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return expected_reward_loss(logits, target, reduction=self.reduction)
