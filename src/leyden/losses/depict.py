"""Targets and loss of DEPICT (K. G. Dizaji, A. Herandi, C. Deng, W. Cai, H. Huang, "Deep Clustering via Joint
Convolutional Autoencoder Embedding and Relative Entropy Minimization", 2017, arXiv 1704.06327, equations 5 and 6;
authors' code: herandy/DEPICT).

The paper's equation 5 has ``power=1`` and ``frequency_power=0.5``; the authors' code has 2 and 1, the defaults here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses.reduction import reduce_loss

__all__ = ["DEPICTLoss", "depict_loss", "depict_targets"]


def depict_targets(prob: Tensor, *, power: float = 2.0, frequency_power: float = 1.0) -> Tensor:
    """Sharpens cluster probabilities, and lifts those of small clusters.

    ``q_ik`` is proportional to ``p_ik ** power / (sum_j p_jk) ** frequency_power``. The sum is over the rows given:
    those of the whole training set.

    Args:
        prob: probabilities, ``[M, K]``; get no gradient.
        power: 1 sharpens nothing.
        frequency_power: 0 leaves out the size of the clusters.

    Returns:
        Probabilities ``[M, K]`` of the same dtype.

    Raises:
        ValueError: ``prob`` is not a matrix, ``power`` is not positive, or ``frequency_power`` is negative.
    """
    if prob.ndim != 2:
        raise ValueError(f"prob must have shape [M, K], got {tuple(prob.shape)}")
    if not (power > 0.0 and frequency_power >= 0.0):
        raise ValueError(
            f"power must be positive and frequency_power at least 0, got power={power} and "
            f"frequency_power={frequency_power}"
        )
    wide = prob.detach().to(torch.promote_types(prob.dtype, torch.float32))
    frequency = wide.sum(0).clamp(min=torch.finfo(wide.dtype).tiny)  # [K]; a cluster may be empty
    # in logarithms, because the square of a small probability would be 0
    return (power * wide.log() - frequency_power * frequency.log()).softmax(-1).to(prob.dtype)


def depict_loss(noisy_logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross entropy of noisy predictions, ``-sum_k q_k log p_k``.

    Args:
        noisy_logits: scores of the clusters, by a network with noise, ``[N, K]``.
        target: probabilities ``[N, K]`` as `depict_targets` makes them, or cluster numbers, int64 ``[N]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes do not fit, or another ``reduction``.
    """
    if target.shape not in (noisy_logits.shape, noisy_logits.shape[:1]):
        raise ValueError(
            f"target must have shape {tuple(noisy_logits.shape)} or {tuple(noisy_logits.shape[:1])}, got "
            f"{tuple(target.shape)}"
        )
    wide = noisy_logits.to(torch.promote_types(noisy_logits.dtype, torch.float32))
    target = target.detach().to(wide.dtype) if target.ndim == 2 else target
    return reduce_loss(functional.cross_entropy(wide, target, reduction="none"), reduction)


class DEPICTLoss(nn.Module):
    """Module twin of `depict_loss`."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, noisy_logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return depict_loss(noisy_logits, target, reduction=self.reduction)
