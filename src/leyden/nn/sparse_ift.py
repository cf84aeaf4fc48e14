"""Sparse iso-FLOP transformations (V. Thangarasa, S. Saxena, A. Gupta, S. Lie, "Sparse Iso-FLOP Transformations for
Maximizing Training Efficiency", 2023, arXiv 2303.11525, section 3): sparse layers that need the multiplications of a
dense one, but have more weights to choose from.

Original code: CerebrasResearch/Sparse-IFT. Its parallel branches have a batch norm each and share one activation behind
their sum, and its factors no activation between them; here each has an activation, as in the paper's text.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = [
    "FixedMask",
    "SparseDopedLinear",
    "SparseFactorizedLinear",
    "SparseParallelLinear",
    "SparseWideLinear",
    "iso_flop_branches",
    "iso_flop_rank",
    "iso_flop_width",
]


def iso_flop_width(sparsity: float) -> float:
    """Factor of both sides of a layer, ``1 / sqrt(1 - sparsity)``.

    Raises:
        ValueError: ``sparsity`` does not lie in [0, 1).
    """
    _check_sparsity(sparsity)
    return 1.0 / math.sqrt(1.0 - sparsity)


def iso_flop_branches(sparsity: float) -> int:
    """Number of parallel layers, ``1 / (1 - sparsity)``, rounded.

    Raises:
        ValueError: ``sparsity`` does not lie in [0, 1).
    """
    _check_sparsity(sparsity)
    return round(1.0 / (1.0 - sparsity))


def iso_flop_rank(kind: str, in_features: int, out_features: int, sparsity: float) -> int:
    """Size between two factors of a layer.

    Args:
        kind: ``"factorized"``, where both factors are sparse, or ``"doped"``, where they are dense beside a sparse
            layer.
        in_features: inputs; of a convolution, times the places of its kernel.
        out_features: outputs.
        sparsity: share of zeros.

    Raises:
        ValueError: another ``kind``, or ``sparsity`` does not lie in [0, 1).
    """
    _check_sparsity(sparsity)
    product, total = in_features * out_features, in_features + out_features
    if kind == "factorized":
        return math.ceil(product / ((1.0 - sparsity) * total))
    if kind == "doped":
        return math.floor(sparsity * product / total)
    raise ValueError(f"kind must be 'factorized' or 'doped', got {kind!r}")


class SparseWideLinear(nn.Linear):
    """Linear layer that is `iso_flop_width` times as wide on both sides; its mask is that of `DynamicSparsity`.

    Args:
        in_features: inputs of the dense layer.
        out_features: outputs of the dense layer.
        sparsity: share of zeros.
        bias: whether there is one.
        widen_in: whether the inputs are as many times more; not in the first layer of a network.
        widen_out: the same of the outputs; not in the last one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sparsity: float,
        bias: bool = True,
        *,
        widen_in: bool = True,
        widen_out: bool = True,
    ) -> None:
        width = iso_flop_width(sparsity)
        super().__init__(
            round(width * in_features) if widen_in else in_features,
            round(width * out_features) if widen_out else out_features,
            bias,
        )


class SparseParallelLinear(nn.Module):
    """Sum of `iso_flop_branches` linear layers, each followed by an activation.

    Args:
        in_features: inputs.
        out_features: outputs.
        sparsity: share of zeros.
        bias: whether there is one.
        activation: class of the module behind each layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sparsity: float,
        bias: bool = True,
        *,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        branches = range(iso_flop_branches(sparsity))
        self.branches = nn.ModuleList(nn.Linear(in_features, out_features, bias) for _ in branches)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        return torch.stack([self.activation(branch(x)) for branch in self.branches]).sum(0)


class SparseFactorizedLinear(nn.Module):
    """Two sparse linear layers with an activation between them, as wide there as `iso_flop_rank` says.

    Args:
        in_features: inputs.
        out_features: outputs.
        sparsity: share of zeros, of both.
        bias: whether the second has one.
        activation: class of the module between them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sparsity: float,
        bias: bool = True,
        *,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        rank = iso_flop_rank("factorized", in_features, out_features, sparsity)
        self.u = nn.Linear(in_features, rank, bias=False)
        self.activation = activation()
        self.v = nn.Linear(rank, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        return self.v(self.activation(self.u(x)))


class SparseDopedLinear(nn.Module):
    """A sparse linear layer plus a dense product of two thin ones; a plain layer if `iso_flop_rank` is 0.

    Args:
        in_features: inputs.
        out_features: outputs.
        sparsity: share of zeros of the sparse layer.
        bias: whether it has one.
    """

    def __init__(self, in_features: int, out_features: int, sparsity: float, bias: bool = True) -> None:
        super().__init__()
        rank = iso_flop_rank("doped", in_features, out_features, sparsity)
        self.sparse = nn.Linear(in_features, out_features, bias)
        self.u = nn.Linear(in_features, rank, bias=False) if rank else None
        self.v = nn.Linear(rank, out_features, bias=False) if rank else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        out = self.sparse(x)
        return out if self.u is None or self.v is None else out + self.v(self.u(x))


class FixedMask(nn.Module):
    """``weight * mask``, for `torch.nn.utils.parametrize`; the gradient reaches the stored weight without the mask.

    So the stored weight has the gradient of the dense one, by which a mask can grow; whoever trains it masks it.

    Args:
        mask: True where the weight is kept, of its shape; a buffer ``mask``, which may be written into.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the masked weight."""
        return cast(Any, _DenseGradient).apply(weight, self.mask)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Takes a weight that is assigned."""
        return weight


class _DenseGradient(torch.autograd.Function):
    generate_vmap_rule = True  # for gradients per sample

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
