"""2:4 sparse weights in PyTorch's semi-structured form, which GPUs from NVIDIA's Ampere on multiply by in less time.

A. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv 2104.08378; `torch.sparse`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.nn._layers import check_skip, is_skipped

__all__ = ["to_semi_structured"]


def to_semi_structured(network: nn.Module, *, skip: Sequence[str] = ()) -> list[str]:
    """Compresses the weights of linear layers that are 2:4 sparse, in place and for inference only.

    Parametrized weights are resolved first; layers whose weights are not 2:4 sparse stay as they are.

    Args:
        network: on a CUDA device, in float16 or bfloat16.
        skip: dotted names of modules that are left out, with all that is in them.

    Returns:
        Dotted names of the layers that were compressed.

    Raises:
        ValueError: no linear layer is 2:4 sparse, or one that is lies on another device or has another dtype.
        RuntimeError: PyTorch's kernels do not take the shape of a weight.
    """
    check_skip(network, skip)
    linear = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and not is_skipped(name, skip) and _is_2to4(layer.weight)
    }
    if not linear:
        raise ValueError(f"{type(network).__name__} has no linear layer with a 2:4 sparse weight")
    for name, layer in linear.items():
        weight = layer.weight
        if weight.device.type != "cuda" or weight.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name}.weight must be float16 or bfloat16 on a CUDA device, got {weight.dtype} on {weight.device}"
            )
    for layer in linear.values():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        compressed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(compressed, requires_grad=False)
    return list(linear)


def _is_2to4(weight: Tensor) -> bool:
    """Whether in every group of 4 inputs at least 2 weights are zero."""
    return weight.shape[1] % 4 == 0 and bool(((weight.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all())
