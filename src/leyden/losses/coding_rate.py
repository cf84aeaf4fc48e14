"""Coding rates (Y. Yu, K. H. R. Chan, C. You, C. Song, Y. Ma, "Learning Diverse and Discriminative Representations via
the Principle of Maximal Coding Rate Reduction", 2020, arXiv 2006.08558; authors' code: ryanchankh/mcr2), and a
membership of every sample in the cluster of every other one (T. Ding, S. Tong, K. H. R. Chan, X. Dai, Y. Ma, B. D.
Haeffele, "Unsupervised Manifold Linearizing and Clustering", 2023, arXiv 2301.01805, section 3).

``eps`` is that of the first paper's code; the papers write its square.
"""

import torch
from torch import Tensor, nn

__all__ = ["MCR2", "coding_rate", "compressed_coding_rate", "doubly_stochastic_membership", "mcr2_loss"]

MAX_NUMBERS = 2**24  # of the matrices whose determinants are taken at a time


def coding_rate(z: Tensor, *, eps: float = 0.5) -> Tensor:
    """Rate of all samples, ``0.5 logdet(I + D / (N eps) Z'Z)``: large where they fill their space.

    Args:
        z: features on the unit sphere, ``[N, D]``.
        eps: the distortion that is allowed.

    Returns:
        ``[]``, in float32 at least.

    Raises:
        ValueError: ``z`` is no matrix or empty, or ``eps`` is not positive.
    """
    wide = _checked(z, eps)
    with torch.autocast(z.device.type, enabled=False):
        return 0.5 * _logdet(wide.T @ wide * (wide.shape[1] / (len(wide) * eps)))


def compressed_coding_rate(z: Tensor, membership: Tensor, *, eps: float = 0.5) -> Tensor:
    """Rate of each cluster by itself, ``sum_k tr_k / 2N logdet(I + D / (tr_k eps) Z' diag(P_k) Z)``.

    Args:
        z: features on the unit sphere, ``[N, D]``.
        membership: shares P of the samples in K clusters, 0 or more, ``[N, K]``; ``tr_k`` is the sum of a column.
        eps: the distortion that is allowed.

    Returns:
        ``[]``, in float32 at least.

    Raises:
        ValueError: the shapes do not fit, or ``eps`` is not positive.
    """
    wide = _checked(z, eps)
    if membership.ndim != 2 or len(membership) != len(z):
        raise ValueError(f"membership must be [N, K] with N={len(z)}, got {tuple(membership.shape)}")
    num_samples, dim = wide.shape
    sizes = membership.to(wide.dtype).sum(0) + 1e-8  # [K]; a cluster may be empty
    rates = []
    with torch.autocast(z.device.type, enabled=False):
        for shares, size in zip(*(x.split(max(1, MAX_NUMBERS // dim**2)) for x in (membership.T, sizes)), strict=True):
            grams = torch.einsum("kn,nd,ne->kde", shares.to(wide.dtype), wide, wide)
            rates.append(size * _logdet(grams * (dim / (size * eps)).view(-1, 1, 1)))
    return torch.cat(rates).sum() / (2 * num_samples)


def mcr2_loss(z: Tensor, membership: Tensor, *, eps: float = 0.5) -> Tensor:
    """Compressed rate minus rate: least where clusters fill orthogonal subspaces. At most 0 if rows sum to 1.

    Args:
        z: features on the unit sphere, ``[N, D]``.
        membership: shares of the samples in K clusters, ``[N, K]``.
        eps: the distortion that is allowed.

    Raises:
        ValueError: the shapes do not fit, or ``eps`` is not positive.
    """
    return compressed_coding_rate(z, membership, eps=eps) - coding_rate(z, eps=eps)


class MCR2(nn.Module):
    """Module twin of `mcr2_loss`."""

    def __init__(self, *, eps: float = 0.5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, z: Tensor, membership: Tensor) -> Tensor:
        """Returns the loss."""
        return mcr2_loss(z, membership, eps=self.eps)


def doubly_stochastic_membership(features: Tensor, *, gamma: float = 0.1, iterations: int = 20) -> Tensor:
    """Shares of all samples in the clusters of all: ``exp(F F' / gamma)``, scaled so that rows and columns sum to 1.

    The scaling keeps the matrix symmetric in each iteration, as Sinkhorn's does only in the end.

    Args:
        features: F, on the unit sphere, ``[N, M]``.
        gamma: temperature; a small one gives each sample to itself.
        iterations: of the scaling.

    Returns:
        ``[N, N]``, in float32 at least.

    Raises:
        ValueError: ``features`` is no matrix, or another argument is out of range.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be [N, M], got {tuple(features.shape)}")
    if not gamma > 0.0 or iterations < 1:
        raise ValueError(f"gamma must be positive and iterations at least 1, got {gamma} and {iterations}")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    with torch.autocast(features.device.type, enabled=False):
        log_kernel = wide @ wide.T / gamma
    log_scale = torch.zeros_like(log_kernel[0])  # [N]
    for _ in range(iterations):  # the mean of two steps, which would swing between two points
        log_scale = 0.5 * (log_scale - (log_kernel + log_scale).logsumexp(1))
    return (log_kernel + log_scale + log_scale.unsqueeze(1)).exp()


def _checked(z: Tensor, eps: float) -> Tensor:
    if z.ndim != 2 or not len(z):
        raise ValueError(f"z must be [N, D] with N of 1 or more, got {tuple(z.shape)}")
    if not eps > 0.0:
        raise ValueError(f"eps must be positive, got {eps}")
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _logdet(matrices: Tensor) -> Tensor:
    """``logdet(I + M)`` of positive semidefinite matrices ``[..., D, D]``."""
    factor = torch.linalg.cholesky(matrices + torch.eye(matrices.shape[-1], device=matrices.device))
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
