"""Direct coverage optimization (F. Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting
Confidence Improves Mathematical Reasoning", 2025, arXiv 2502.07154; authors' code: allanraventos/refine).

If N answers will be sampled and one right one is enough, there is no point in a probability of the right answer beyond
some 1 / N: what is saved is better spent on questions that are not solved yet.

The authors' code takes a series of the factor for ``p N < 0.1``, which is off by up to 0.01 %; by `torch.log1p` and
`torch.expm1` it is exact everywhere. Their second file (``NCO.py``) takes the mean of the loss over tokens instead of
the sum, which is not the gradient of the objective.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.losses.reduction import reduce_loss

__all__ = ["DCOLoss", "answer_nll", "dco_factor", "dco_loss"]


def dco_factor(p: Tensor, n: int) -> Tensor:
    """``n (1 - p)^(n - 1) p / (1 - (1 - p)^n)``, what the objective makes of the gradient of ``-log(p)``.

    Args:
        p: probabilities of the right answer.
        n: N, number of answers that will be sampled.

    Returns:
        float64, of the shape of ``p``, in [0, 1]: 1 where p is 0, 0 where p is 1 (for n = 1, 1 everywhere).

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    p = p.to(torch.float64)
    if n == 1:
        return torch.ones_like(p)
    log_miss = torch.log1p(-p)  # of one sample
    is_possible = p >= torch.finfo(p.dtype).tiny  # of smaller ones the logarithm is rounded to 0
    coverage = -torch.expm1(n * log_miss)
    return torch.where(is_possible, n * p * torch.exp((n - 1) * log_miss) / coverage.where(is_possible, 1.0), 1.0)


def answer_nll(logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Negative log-likelihood of whole answers: the sum over the tokens of each.

    Args:
        logits: scores before softmax, ``[N, C]``, or ``[N, T, C]`` for answers of several tokens.
        target: int64 of the shape of ``logits`` without C, not to be shifted; or soft targets of that of ``logits``.
        ignore_index: class number of tokens that are no part of the answer.

    Returns:
        ``[N]``, float32 at least.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.ndim not in (2, 3) or target.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"logits must have shape [N, C] or [N, T, C] and target the same with or without C, got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_soft = target.shape == logits.shape
    tokens = functional.cross_entropy(
        logits.flatten(0, -2),
        target.flatten(0, -2).to(logits.dtype) if is_soft else target.flatten(),
        ignore_index=ignore_index,
        reduction="none",
    )
    return tokens.view(len(logits), -1).sum(-1)


def dco_loss(
    logits: Tensor, target: Tensor, *, n: int = 16, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Loss with the gradient of ``-log(1 - (1 - p)^n)``, where p is the probability of the whole answer.

    Its value is not that of the objective, but ``factor * -log(p)``, with a factor that gets no gradient; the metric
    `leyden.metrics.PassAtN` says what is reached.

    Args:
        logits: as in `answer_nll`.
        target: as in `answer_nll`.
        n: N, number of answers that will be sampled; for 1 the loss is cross entropy.
        ignore_index: as in `answer_nll`.
        reduction: over answers, ``"mean"``, ``"sum"`` or ``"none"`` (gives ``[N]``).

    Raises:
        ValueError: the shapes do not fit, ``n`` is below 1, or another ``reduction``.
    """
    nll = answer_nll(logits, target, ignore_index=ignore_index)
    factor = dco_factor(torch.exp(-nll.detach().double()), n)
    return reduce_loss(factor.to(nll.dtype) * nll, reduction)


class DCOLoss(nn.Module):
    """Module twin of `dco_loss`."""

    def __init__(self, *, n: int = 16, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.n, self.ignore_index, self.reduction = n, ignore_index, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the loss."""
        return dco_loss(logits, target, n=self.n, ignore_index=self.ignore_index, reduction=self.reduction)
