"""The Jensen-Shannon divergence of what two networks predict (J. Lin, "Divergence Measures Based on the Shannon
Entropy", 1991)."""

import math

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["JensenShannonDivergence", "jensen_shannon_divergence"]


def jensen_shannon_divergence(logits_a: Tensor, logits_b: Tensor, *, reduction: str = "mean") -> Tensor:
    """``KL(p || m) / 2 + KL(q || m) / 2`` of two softmaxes p and q and their mean m, in nats: from 0 to ln 2.

    Args:
        logits_a: ``[N, C]``; the softmaxes are taken in float32 at least. A class whose logit is ``-inf`` has none.
        logits_b: ``[N, C]``, of the same scale.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: shapes do not fit, or another ``reduction``.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise ValueError(
            f"logits_a and logits_b must both be [N, C], got {tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
        )
    log_p, log_q = _log_softmax(logits_a), _log_softmax(logits_b)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2.0)
    divergence = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
    return reduce_loss((0.5 * divergence.sum(-1)).clamp(min=0.0), reduction)  # rounding may leave less than 0


class JensenShannonDivergence(nn.Module):
    """Module twin of `jensen_shannon_divergence`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits_a: Tensor, logits_b: Tensor) -> Tensor:
        """Returns the divergence."""
        return jensen_shannon_divergence(logits_a, logits_b, reduction=self.reduction)


def _log_softmax(logits: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).clamp(min=-1e6)  # 0 times a finite number, where a probability is 0
