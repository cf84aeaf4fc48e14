"""Decoupled mixup (Z. Liu, S. Li, G. Wang, C. Tan, L. Wu, S. Z. Li, "Harnessing Hard Mixed Samples with Decoupled
Regularizer", 2022, arXiv 2203.10761; authors' code: Westlake-AI/openmixup, ``soft_mix_cross_entropy``).

The cross entropy of a mixed sample lets its two classes compete. The regularizer asks for confidence in the dominant
one against all classes but the other. The authors' code chooses the side by the order of the class numbers in the first
row of the batch, which is the wrong one if the larger number comes first there, and leaves the regularizer out at equal
shares: here the side goes by the shares, and at equal ones it is the first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses.reduction import reduce_loss

__all__ = ["DecoupledMixupLoss", "decoupled_cross_entropy", "decoupled_mixup_loss"]


def decoupled_mixup_loss(
    logits: Tensor,
    target: Tensor,
    target2: Tensor,
    lam: float | Tensor,
    *,
    eta: float = 0.1,
    threshold: float = 0.5,
    power: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of mixed samples plus `decoupled_cross_entropy`.

    Args:
        logits: scores before softmax, ``[N, C]``.
        target: classes of the first of the two samples, int64 ``[N]`` or soft ``[N, C]``.
        target2: classes of the second one.
        lam: share of the first one, a number, a scalar or ``[N]``.
        eta: as in `decoupled_cross_entropy`, like the next two.
        threshold: share from which the first class is the dominant one.
        power: exponent of the share in the weight.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: as `decoupled_cross_entropy`.
    """
    knobs = {"eta": eta, "threshold": threshold, "power": power}
    regularizer = decoupled_cross_entropy(logits, target, target2, lam, **knobs, reduction="none")  # [N]
    first, second = (
        functional.cross_entropy(_in_full_precision(logits), each, reduction="none") for each in (target, target2)
    )
    return reduce_loss(lam * first + (1.0 - lam) * second + regularizer, reduction)


def decoupled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target2: Tensor,
    lam: float | Tensor,
    *,
    eta: float = 0.1,
    threshold: float = 0.5,
    power: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    """Regularizer of mixed samples: cross entropy of the dominant class, with the other one out of the softmax.

    ``eta * share^power * -log(exp(z_a) / sum over c != b of exp(z_c))`` where a is the dominant class, b the other one;
    0 where both are the same. With two classes it is 0 for all.

    Args:
        logits: scores z before softmax, ``[N, C]``, C >= 2.
        target: classes of the first of the two samples, int64 ``[N]``, or soft ``[N, C]``, of which the most probable
            ones count.
        target2: classes of the second one.
        lam: share of the first one, a number, a scalar or ``[N]``.
        eta: weight; the authors take 0.01 to 1.
        threshold: share from which the first class is the dominant one.
        power: exponent of the share in the weight.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: shapes do not fit, there is one class only, a number is out of range, or another ``reduction``.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be [N, C] with 2 or more classes, got shape {tuple(logits.shape)}")
    if eta < 0.0 or power < 0.0:
        raise ValueError(f"eta and power must be at least 0, got {eta} and {power}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    first, second = (_classes(each, logits, name) for each, name in ((target, "target"), (target2, "target2")))
    scores = _in_full_precision(logits)
    share = lam if isinstance(lam, Tensor) else scores.new_full((), lam)
    if share.shape not in ((), (len(logits),)):
        raise ValueError(f"lam must be a number or [{len(logits)}] as the samples, got shape {tuple(share.shape)}")
    is_first = share >= threshold
    dominant, other = torch.where(is_first, first, second), torch.where(is_first, second, first)  # [N]
    weight = eta * torch.where(is_first, share, 1.0 - share) ** power
    without_other = scores.scatter(1, other.unsqueeze(1), -torch.inf).logsumexp(1)
    losses = without_other - scores.gather(1, dominant.unsqueeze(1)).squeeze(1)
    return reduce_loss(torch.where(first == second, 0.0, weight * losses), reduction)


class DecoupledMixupLoss(nn.Module):
    """Module twin of `decoupled_mixup_loss`."""

    def __init__(
        self, *, eta: float = 0.1, threshold: float = 0.5, power: float = 0.5, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.eta, self.threshold, self.power, self.reduction = eta, threshold, power, reduction

    def forward(self, logits: Tensor, target: Tensor, target2: Tensor, lam: float | Tensor) -> Tensor:
        """Returns the loss."""
        knobs = {"eta": self.eta, "threshold": self.threshold, "power": self.power}
        return decoupled_mixup_loss(logits, target, target2, lam, **knobs, reduction=self.reduction)


def _in_full_precision(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _classes(target: Tensor, logits: Tensor, name: str) -> Tensor:
    if target.is_floating_point() and target.shape == logits.shape:
        return target.argmax(1)
    if target.dtype == torch.int64 and target.shape == logits.shape[:1]:
        return target
    raise ValueError(
        f"{name} must be int64 [{len(logits)}] or floating point {list(logits.shape)}, "
        f"got {target.dtype} {tuple(target.shape)}"
    )
