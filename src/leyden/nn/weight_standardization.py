"""Weight standardization (S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Micro-Batch Training with Batch-Channel
Normalization and Weight Standardization", 2019, arXiv 1903.10520; authors' code:
joe-siyuan-qiao/Batch-Channel-Normalization)."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leyden.core import replace_modules

__all__ = ["WSConv1d", "WSConv2d", "WSConv3d", "convert_weight_standardization", "standardize_weight"]


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Gives the weights of each output channel mean 0 and variance 1.

    The variance is the unbiased one, as in the authors' code (timm's ``StdConv2d`` has the biased one).

    Args:
        weight: ``[out, ...]``; standardised in float32 at least.
        eps: added to the variance; a channel of equal weights gets zeros.

    Raises:
        ValueError: an output channel has a single weight.
    """
    if weight.ndim < 2 or weight[0].numel() < 2:
        raise ValueError(f"weight must have two or more weights per output channel, got {tuple(weight.shape)}")
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, tuple(range(1, weight.ndim)), keepdim=True)
    return ((wide - mean) * (variance + eps).rsqrt()).to(weight.dtype)


class _WSConv(_ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        """Convolves with standardised weights."""
        return self._conv_forward(input, standardize_weight(self.weight), self.bias)


class WSConv1d(_WSConv, nn.Conv1d):
    """`torch.nn.Conv1d` with standardised weights; same arguments and state-dict names."""


class WSConv2d(_WSConv, nn.Conv2d):
    """`torch.nn.Conv2d` with standardised weights; same arguments and state-dict names."""


class WSConv3d(_WSConv, nn.Conv3d):
    """`torch.nn.Conv3d` with standardised weights; same arguments and state-dict names."""


_STANDARDIZED: dict[type[nn.Module], Callable[..., _WSConv]] = {
    nn.Conv1d: WSConv1d,
    nn.Conv2d: WSConv2d,
    nn.Conv3d: WSConv3d,
}


def convert_weight_standardization(module: nn.Module) -> nn.Module:
    """Replaces the convolutions of a network in place; weights and state-dict names stay.

    Those with a single weight per output channel are left as they are.

    Args:
        module: the network.

    Returns:
        ``module``, or its replacement if it is a convolution itself.

    Raises:
        ValueError: there is no convolution to be replaced.
    """

    def replaceable(name: str, layer: nn.Module) -> bool:
        return type(layer) in _STANDARDIZED and cast(_ConvNd, layer).weight[0].numel() > 1

    def build(layer: nn.Module) -> nn.Module:
        conv = cast(_ConvNd, layer)
        standardized = _STANDARDIZED[type(conv)](
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
        )
        standardized.weight, standardized.bias = conv.weight, conv.bias  # the same tensors: tied ones stay tied
        return standardized

    holder = nn.Sequential(module)  # so that the module itself may be replaced
    replace_modules(holder if replaceable("", module) else module, replaceable, build)
    return holder[0]
