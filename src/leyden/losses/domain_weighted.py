"""Losses of rare domains weighted up (T. Li, H. Xu, W. Tan, K. Murray, D. Khashabi, "Upsample or Upweight? Balanced
Training on Heavily Imbalanced Datasets", NAACL 2025, arXiv 2410.04579): scalarization, which has the same mean gradient
as sampling at a temperature, but more variance."""

import torch
from torch import Tensor, nn

from leyden.losses.reduction import reduce_loss

__all__ = ["DomainWeighted", "domain_weighted_loss", "scalarization_weights", "temperature_probabilities"]


def temperature_probabilities(counts: Tensor, temperature: float = 1.0) -> Tensor:
    """Probability of each domain, in proportion to ``counts ** (1 / temperature)``.

    Args:
        counts: samples of each domain, ``[D]``; a domain without samples has probability 0.
        temperature: positive; 1 is proportional, infinity uniform.

    Returns:
        ``[D]``, float64 for whole numbers.

    Raises:
        ValueError: ``counts`` is no vector of numbers of at least 0 with one above it, or ``temperature`` is not
            positive.
    """
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.any():
        raise ValueError(f"counts must be numbers of samples [D], at least 0 and not all 0, got {counts.tolist()}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    counts = counts if counts.is_floating_point() else counts.double()
    logits = counts.log() / temperature  # the power itself could overflow
    return logits.masked_fill(counts == 0, -torch.inf).softmax(0)


def scalarization_weights(counts: Tensor, temperature: float = 1.0) -> Tensor:
    """Weight of the loss of each domain, ``[D]``: its probability at a temperature, divided by that in the data.

    The mean weight of a sample is 1. Arguments as in `temperature_probabilities`; an empty domain has weight 0.
    """
    wanted, present = temperature_probabilities(counts, temperature), temperature_probabilities(counts)
    return torch.where(counts > 0, wanted / present, 0.0)


def domain_weighted_loss(
    losses: Tensor, domain: Tensor, *, counts: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Losses of samples, each with the weight of its domain.

    Args:
        losses: ``[N]``; multiplied in float32 at least.
        domain: number of each sample's domain, int64 ``[N]``.
        counts: samples of each domain in the data, ``[D]``; see `scalarization_weights`.
        temperature: likewise.
        reduction: ``"mean"`` (over samples, not weights), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: ``losses`` and ``domain`` are not of one length, or a knob is out of range.
    """
    return _weighted_loss(losses, domain, scalarization_weights(torch.as_tensor(counts), temperature), reduction)


class DomainWeighted(nn.Module):
    """Module twin of `domain_weighted_loss`, which makes the weights once.

    Raises:
        ValueError: ``counts`` or ``temperature`` is out of range.
    """

    def __init__(self, *, counts: Tensor, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.weights = scalarization_weights(torch.as_tensor(counts), temperature)  # no buffer, to stay float64
        self.reduction = reduction

    def forward(self, losses: Tensor, domain: Tensor) -> Tensor:
        """Returns the loss."""
        if self.weights.device != losses.device:
            self.weights = self.weights.to(losses.device, torch.promote_types(losses.dtype, torch.float32))
        return _weighted_loss(losses, domain, self.weights, self.reduction)


def _weighted_loss(losses: Tensor, domain: Tensor, weights: Tensor, reduction: str) -> Tensor:
    if losses.ndim != 1 or losses.shape != domain.shape:
        raise ValueError(
            f"losses and domain must have one number per sample, [N], got {tuple(losses.shape)} and "
            f"{tuple(domain.shape)}"
        )
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    return reduce_loss(losses * weights.to(losses)[domain], reduction)
