"""Batch-channel normalization (S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Micro-Batch Training with Batch-Channel
Normalization and Weight Standardization", 2019, arXiv 1903.10520; authors' code:
joe-siyuan-qiao/Batch-Channel-Normalization)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.core import all_reduce_mean, replace_modules

__all__ = [
    "BatchChannelNorm1d",
    "BatchChannelNorm2d",
    "EstimatedBatchNorm1d",
    "EstimatedBatchNorm2d",
    "convert_batch_channel_norm",
]


class _EstimatedBatchNorm(_BatchNorm):
    """Batch norm by its running statistics, in training too, which makes batches of one or two samples usable.

    A training batch moves the running mean towards its own, and the running variance towards its mean squared distance
    from the running mean before that; over all processes. They are constants in the backward pass. A forward pass that
    is made twice, as activation checkpointing does, moves them twice.

    Args:
        num_features: C.
        eps: as in torch's batch norm.
        momentum: share of a batch's statistics in an update; 0 keeps them as they are.

    Raises:
        ValueError: ``momentum`` is outside of [0, 1].
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        super().__init__(num_features, eps, momentum)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[N, C, ...]``."""
        self._check_input_dim(input)
        mean, variance = self.running_mean, self.running_var
        if self.training and self.track_running_stats:
            mean, variance = self._update(input)
        return functional.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _update(self, input: Tensor) -> tuple[Tensor, Tensor]:
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        wide = input.to(running_mean.dtype).transpose(0, 1).flatten(1)  # [C, ...]
        mean = wide.mean(1)
        variance = (wide - running_mean[:, None]).square().mean(1)
        mean, variance = all_reduce_mean(torch.stack([mean, variance]))
        momentum = cast(float, self.momentum)
        # tensors of their own for the backward pass, which still needs them when a later call has moved the buffers
        mean, variance = running_mean.lerp(mean, momentum), running_var.lerp(variance, momentum)
        running_mean.copy_(mean)
        running_var.copy_(variance)
        cast(Tensor, self.num_batches_tracked).add_(1)
        return mean, variance


class EstimatedBatchNorm1d(_EstimatedBatchNorm, nn.BatchNorm1d):
    """Estimated batch norm of ``[N, C]`` or ``[N, C, L]``."""


class EstimatedBatchNorm2d(_EstimatedBatchNorm, nn.BatchNorm2d):
    """Estimated batch norm of ``[N, C, H, W]``."""


class _BatchChannelNorm(nn.Module):
    """Batch norm, then group norm, whose weight and bias are one per group.

    So it is in the authors' code; the paper has a pair per channel.

    Args:
        num_features: C.
        num_groups: groups of channels; must divide C.
        eps: of both.
        momentum: of the batch norm's running statistics.
        estimated: whether the batch norm goes by its running statistics in training too.

    Raises:
        ValueError: ``num_groups`` does not divide ``num_features``.
    """

    kinds: tuple[type[_BatchNorm], type[_EstimatedBatchNorm]]

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        estimated: bool = False,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_groups must divide num_features, {num_features}, got {num_groups}")
        self.num_groups = num_groups
        self.eps = eps
        self.bn = self.kinds[estimated](num_features, eps=eps, momentum=momentum)
        self.weight = nn.Parameter(torch.ones(num_groups))
        self.bias = nn.Parameter(torch.zeros(num_groups))

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``[N, C, ...]``."""
        normalized = self.bn(input)
        size = input.shape[1] // self.num_groups
        weight, bias = self.weight.repeat_interleave(size), self.bias.repeat_interleave(size)
        return functional.group_norm(normalized, self.num_groups, weight, bias, self.eps)


class BatchChannelNorm1d(_BatchChannelNorm):
    """Batch-channel norm of ``[N, C]`` or ``[N, C, L]``."""

    kinds = (nn.BatchNorm1d, EstimatedBatchNorm1d)


class BatchChannelNorm2d(_BatchChannelNorm):
    """Batch-channel norm of ``[N, C, H, W]``."""

    kinds = (nn.BatchNorm2d, EstimatedBatchNorm2d)


_KINDS: dict[type[nn.Module], type[_BatchChannelNorm]] = {
    nn.BatchNorm1d: BatchChannelNorm1d,
    nn.BatchNorm2d: BatchChannelNorm2d,
}


def convert_batch_channel_norm(module: nn.Module, num_groups: int = 32, *, estimated: bool = False) -> nn.Module:
    """Replaces the batch norms of a network in place by batch-channel norms, of which they become a part.

    Args:
        module: the network; not a batch norm itself.
        num_groups: groups of channels; must divide the channels of each.
        estimated: as in `BatchChannelNorm2d`.

    Returns:
        ``module``.

    Raises:
        ValueError: there is no batch norm, or one of another class (of three dimensions, or SyncBatchNorm), without
            weights or running statistics, or ``num_groups`` does not divide its channels.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in _KINDS:
            raise ValueError(f"{name or 'module'} is a {type(layer).__name__}, which has no batch-channel norm")
        if isinstance(layer, _BatchNorm) and not (layer.affine and layer.track_running_stats):
            raise ValueError(f"{name or 'module'} must have weights and running statistics, as its replacement has")

    def build(layer: nn.Module) -> nn.Module:
        norm = cast(_BatchNorm, layer)
        momentum = 0.1 if norm.momentum is None else norm.momentum
        new = _KINDS[type(norm)](norm.num_features, num_groups, norm.eps, momentum, estimated)
        new.bn.load_state_dict(norm.state_dict())
        return new

    replace_modules(module, lambda _, layer: type(layer) in _KINDS, build)
    return module
