"""Ghost batch norm (E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better: closing the generalization gap
in large batch training of neural networks", 2017, arXiv 1705.08741, algorithm 1): a large batch is normalised in small
parts, each by its own statistics."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.core import replace_modules

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "convert_ghost_batch_norm"]


class _GhostBatchNorm(_BatchNorm):
    """Batch norm of N rows in ``max(1, N // ghost_batch_size)`` consecutive parts of nearly equal size.

    The parts go through batch norm one after another: each moves the running statistics once. Evaluation is that of
    batch norm. Sorted batches, in which a part has one class only, are to be avoided.

    Args:
        num_features: C.
        ghost_batch_size: rows of a part; parts are larger where N is no multiple of it.
        eps: as in torch's batch norm, like all that follow.
        momentum: share of a part's statistics in an update of the running ones; None for a plain mean.
        affine: whether there is a weight and a bias per feature.
        track_running_stats: whether there are running statistics.

    Raises:
        ValueError: ``ghost_batch_size`` is below 2.
    """

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        if ghost_batch_size < 2:
            raise ValueError(f"ghost_batch_size must be at least 2 (one row has no variance), got {ghost_batch_size}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[N, C, ...]``."""
        num_parts = len(input) // self.ghost_batch_size
        if not self.training or num_parts < 2:
            return super().forward(input)
        size, larger = divmod(len(input), num_parts)
        sizes = [size + 1] * larger + [size] * (num_parts - larger)
        normalize = super().forward
        # not `tensor_split`, whose backward pass makes a tensor as large as the input for every part
        return torch.cat([normalize(part) for part in input.split(sizes)])

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch norm of ``[N, C]``, ``[N, C, L]``; arguments of `torch.nn.BatchNorm1d`, and ``ghost_batch_size``."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch norm of ``[N, C, H, W]``; arguments of `torch.nn.BatchNorm2d`, and ``ghost_batch_size``."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch norm of ``[N, C, D, H, W]``; arguments of `torch.nn.BatchNorm3d`, and ``ghost_batch_size``."""


_GHOSTS: dict[type[nn.Module], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
} | {ghost: ghost for ghost in (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d)}


def convert_ghost_batch_norm(module: nn.Module, ghost_batch_size: int = 32) -> nn.Module:
    """Replaces the batch norms of a network in place; parameters, running statistics and state-dict names stay.

    Args:
        module: the network; ghost batch norms in it take the new size.
        ghost_batch_size: rows of a part.

    Returns:
        ``module``, or its replacement if it is a batch norm itself.

    Raises:
        ValueError: there is no batch norm, there is one of another class (such as SyncBatchNorm, whose statistics are
            those of more rows, not of fewer), or ``ghost_batch_size`` is below 2.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in _GHOSTS:
            raise ValueError(f"{name or 'module'} is a {type(layer).__name__}, which has no ghost batch norm")

    def build(layer: nn.Module) -> nn.Module:
        norm = cast(_BatchNorm, layer)
        ghost = _GHOSTS[type(norm)](
            norm.num_features, ghost_batch_size, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        ghost.weight, ghost.bias = norm.weight, norm.bias  # the same tensors: frozen ones stay frozen, tied ones tied
        return ghost

    holder = nn.Sequential(module)  # so that the module itself may be replaced
    root = holder if type(module) in _GHOSTS else module
    replace_modules(root, lambda _, layer: type(layer) in _GHOSTS, build)
    return holder[0]
