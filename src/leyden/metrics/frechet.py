"""Frechet distance of two sets of samples (M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter, "GANs
Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, arXiv 1706.08500, equation 6)."""

import torch
from torch import Tensor
from torchmetrics import Metric

from leyden.core.network import Network

__all__ = ["FrechetDistance", "frechet_distance"]


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """``||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`` of two normal distributions.

    Args:
        mean_1: ``[D]``.
        cov_1: ``[D, D]``.
        mean_2: ``[D]``.
        cov_2: ``[D, D]``.
    """
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    # of the same eigenvalues as the product, and symmetric
    both = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0.0).sqrt().sum()
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2.0 * both


class FrechetDistance(Metric):
    """`frechet_distance` of real and generated samples, as if their features were normal.

    Args:
        features: the network of whose features; the samples' own numbers if None. Its weights stay as they are, and are
            no part of the metric's state.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, features: Network | None = None) -> None:
        super().__init__()
        # in a list, so that it is no submodule: neither saved nor averaged with what is trained
        self._network = [] if features is None else [features.eval().requires_grad_(False)]
        for name in ("real", "generated"):
            self.add_state(f"{name}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{name}_sum", torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state(f"{name}_products", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, real: Tensor, generated: Tensor) -> None:
        """Adds real and generated samples, ``[N, ...]`` and ``[M, ...]``."""
        for name, samples in (("real", real), ("generated", generated)):
            features = self._features(samples)  # [N, D]
            setattr(self, f"{name}_count", getattr(self, f"{name}_count") + len(features))
            setattr(self, f"{name}_sum", getattr(self, f"{name}_sum") + features.sum(0))
            setattr(self, f"{name}_products", getattr(self, f"{name}_products") + features.T @ features)

    def compute(self) -> Tensor:
        """Returns the distance, ``[]``, at least 0 but for rounding.

        Raises:
            ValueError: there are fewer than 2 samples of a kind.
        """
        moments = []
        for name in ("real", "generated"):
            count, total, products = (getattr(self, f"{name}_{part}") for part in ("count", "sum", "products"))
            if count < 2:
                raise ValueError(f"FrechetDistance needs 2 or more {name} samples, got {int(count)}")
            mean = total / count
            moments += [mean, (products - count * mean.outer(mean)) / (count - 1)]
        return frechet_distance(*moments).float()

    @torch.no_grad()
    def _features(self, samples: Tensor) -> Tensor:
        if not self._network:
            return samples.flatten(1).double()
        network = self._network[0].to(samples.device)
        weight = next(network.parameters())
        with torch.autocast(samples.device.type, enabled=False):
            return network.features(samples.to(weight.dtype)).double()
