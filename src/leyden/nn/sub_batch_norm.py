"""Sub-batch norm (C.-Y. Wu, R. Girshick, K. He, C. Feichtenhofer, P. Kraehenbuehl, "A Multigrid Method for Efficiently
Training Video Models", CVPR 2020, arXiv 1912.00998), as in the authors' code (facebookresearch/SlowFast)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SubBatchNorm1d", "SubBatchNorm2d", "SubBatchNorm3d"]


class _SubBatchNorm(_BatchNorm):
    """Batch norm of each of S splits of a batch by itself; split b has the rows i with ``i mod S = b``.

    Each split has running statistics of its own, ``[S, C]``. Evaluation takes the mean of their means, and the mean of
    their variances plus the variance of their means.

    Args:
        num_features: C.
        num_splits: S; the rows of a training batch are a multiple of it. The authors have 8 rows in a split.
        eps: as in torch's batch norm, like all that follow.
        momentum: share of a batch's statistics in an update of the running ones.
        affine: whether there is a weight and a bias per feature.

    Raises:
        ValueError: ``num_splits`` is below 1.
    """

    def __init__(
        self, num_features: int, num_splits: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        if num_splits < 1:
            raise ValueError(f"num_splits must be at least 1, got {num_splits}")
        super().__init__(num_features, eps, momentum, affine)
        self.num_splits = num_splits
        self.running_mean = torch.zeros(num_splits, num_features)
        self.running_var = torch.ones(num_splits, num_features)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[N, C, ...]``.

        Raises:
            ValueError: N is no multiple of ``num_splits``, in training.
        """
        self._check_input_dim(input)
        means, variances = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)  # [S, C]
        if not self.training:
            mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
            return nn.functional.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        if len(input) % self.num_splits:
            raise ValueError(f"input must have a multiple of {self.num_splits} (num_splits) rows, got {len(input)}")
        running: tuple[Tensor | None, Tensor | None] = None, None
        if self.track_running_stats:
            cast(Tensor, self.num_batches_tracked).add_(1)
            running = means.view(-1), variances.view(-1)
        weight, bias = (None if p is None else p.repeat(self.num_splits) for p in (self.weight, self.bias))
        splits = input.reshape(len(input) // self.num_splits, -1, *input.shape[2:])  # [N / S, S * C, ...]
        output = nn.functional.batch_norm(splits, *running, weight, bias, True, cast(float, self.momentum), self.eps)
        return output.view_as(input)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{super().extra_repr()}, num_splits={self.num_splits}"


class SubBatchNorm1d(_SubBatchNorm, nn.BatchNorm1d):
    """Sub-batch norm of ``[N, C]`` or ``[N, C, L]``; arguments of `torch.nn.BatchNorm1d`, and ``num_splits``."""


class SubBatchNorm2d(_SubBatchNorm, nn.BatchNorm2d):
    """Sub-batch norm of ``[N, C, H, W]``; arguments of `torch.nn.BatchNorm2d`, and ``num_splits``."""


class SubBatchNorm3d(_SubBatchNorm, nn.BatchNorm3d):
    """Sub-batch norm of ``[N, C, D, H, W]``; arguments of `torch.nn.BatchNorm3d`, and ``num_splits``."""
