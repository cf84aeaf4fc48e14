"""Dynamic fixed point (D. Das et al., "Mixed Precision Training of Convolutional Neural Networks using Integer
Operations", 2018, arXiv 1802.00930): a tensor is integers of 16 bits with one exponent, and the products of training
are products of integers.

There is no code by the authors. Integer arithmetic is emulated in float64, in which it is exact: products of two
mantissas have 30 bits, so that 2^23 of them can be summed. What their kernels do against the overflow of accumulators
of 32 bits (short chains, whose sums go on in float32) is therefore not needed, and its rounding is not emulated. The
exponent is that of the present tensor; whether a down-conversion keeps one bit more for the sign is unverified.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.core import replace_modules
from leyden.nn._layers import check_skip, is_skipped

__all__ = [
    "DFPConv2d",
    "DFPLinear",
    "convert_to_dfp",
    "dfp_dequantize",
    "dfp_downconvert",
    "dfp_matmul",
    "dfp_quantize",
]


def dfp_quantize(x: Tensor, bits: int = 16) -> tuple[Tensor, int]:
    """Integers and the exponent that they share, chosen such that the largest of them uses all bits.

    Args:
        x: real numbers, any shape.
        bits: bits of an integer, its sign counted, 2 to 16.

    Returns:
        Mantissa, int32 of the shape of ``x``, within ``+-(2^(bits - 1) - 1)``, rounded half to even; and the exponent:
        ``x`` is about ``mantissa * 2^exponent``. Both are 0 if ``x`` is.

    Raises:
        ValueError: a number is NaN or infinite, or ``bits`` is out of range.
    """
    _check_bits(bits)
    largest = x.detach().abs().amax() if x.numel() else torch.zeros(())
    if not largest.isfinite():
        raise ValueError(f"x must be finite, but its largest magnitude is {largest.item()}")
    exponent = _exponent(largest, bits)
    return _mantissa(x.detach(), exponent, bits).to(torch.int32), int(exponent)


def dfp_dequantize(mantissa: Tensor, exponent: int) -> Tensor:
    """``mantissa * 2^exponent``, float32."""
    return (mantissa.to(torch.float64) * 2.0**exponent).to(torch.float32)


def dfp_downconvert(acc: Tensor, exponent: int, bits: int = 16) -> tuple[Tensor, int]:
    """Shifts sums of products to fewer bits: as few places as the largest of them needs.

    Args:
        acc: accumulators, int64, any shape.
        exponent: what they share.
        bits: bits of a result, its sign counted, 2 to 16.

    Returns:
        Mantissa, int32, rounded half to even, and exponent.

    Raises:
        ValueError: ``acc`` is no int64, or ``bits`` is out of range.
    """
    _check_bits(bits)
    if acc.dtype != torch.int64:
        raise ValueError(f"acc must be int64, got {acc.dtype}")
    largest = max(int(acc.max()), -int(acc.min())) if acc.numel() else 0
    shift = max(0, largest.bit_length() - (bits - 1))
    if shift:
        low = acc >> shift
        rest, half = acc - (low << shift), 1 << (shift - 1)
        acc = low + ((rest > half) | ((rest == half) & (low % 2 == 1)))
    limit = 2 ** (bits - 1) - 1
    return acc.clamp(-limit, limit).to(torch.int32), exponent + shift


def dfp_matmul(a: Tensor, b: Tensor, *, bits: int = 16) -> Tensor:
    """Matrix product of two tensors in dynamic fixed point: exact integer sums, times the product of the scales.

    Args:
        a: ``[..., M, K]``.
        b: ``[..., K, N]``.
        bits: bits of an integer, its sign counted, 2 to 16.

    Returns:
        ``[..., M, N]``, float32.

    Raises:
        ValueError: as `dfp_quantize`.
    """
    (left, left_exponent), (right, right_exponent) = dfp_quantize(a, bits), dfp_quantize(b, bits)
    sums = left.to(torch.float64) @ right.to(torch.float64)
    return (sums * 2.0 ** (left_exponent + right_exponent)).to(torch.float32)


class DFPLinear(nn.Linear):
    """A linear layer whose products, forward and backward, are of integers with a shared exponent per tensor.

    Input, weight and the gradient of the output are quantised, each by its present largest magnitude. Weight, bias,
    output and all gradients that it hands on are real numbers, as optimizers need them. NaN and infinity make the whole
    output (or gradient) NaN.

    Args:
        in_features: as in `torch.nn.Linear`.
        out_features: likewise.
        bias: likewise.
        bits: bits of an integer, its sign counted, 2 to 16.

    Raises:
        ValueError: ``bits`` is out of range.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, bits: int = 16) -> None:
        _check_bits(bits)
        super().__init__(in_features, out_features, bias)
        self.bits = bits

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        product = functional.linear(_Quantize.apply(input, self.bits), _Quantize.apply(self.weight, self.bits))
        output = _QuantizeGradient.apply(product, self.bits).to(torch.promote_types(input.dtype, self.weight.dtype))
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{super().extra_repr()}, bits={self.bits}"


class DFPConv2d(nn.Conv2d):
    """A convolution whose products, forward and backward, are of integers, as those of `DFPLinear`.

    Args:
        *args: as in `torch.nn.Conv2d`.
        bits: bits of an integer, its sign counted, 2 to 16.
        **kwargs: as in `torch.nn.Conv2d`.

    Raises:
        ValueError: ``bits`` is out of range.
    """

    def __init__(self, *args: Any, bits: int = 16, **kwargs: Any) -> None:
        _check_bits(bits)
        super().__init__(*args, **kwargs)
        self.bits = bits

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` as `torch.nn.Conv2d` does."""
        weight = _Quantize.apply(self.weight, self.bits)
        product = self._conv_forward(_Quantize.apply(input, self.bits), weight, None)
        output = _QuantizeGradient.apply(product, self.bits).to(torch.promote_types(input.dtype, self.weight.dtype))
        return output if self.bias is None else output + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{super().extra_repr()}, bits={self.bits}"


def convert_to_dfp(network: nn.Module, bits: int = 16, skip: Sequence[str] = ("head",)) -> list[str]:
    """Turns the linear layers and convolutions of a network into those above, in place; state-dict names stay.

    Args:
        network: the network; layers that were converted before take the new ``bits``.
        bits: bits of an integer, its sign counted, 2 to 16.
        skip: dotted names of modules that are left out, with all that is in them.

    Returns:
        Dotted names of the layers that were converted.

    Raises:
        ValueError: ``bits`` is out of range, there is no such layer or no module of a name in ``skip``, or the weight
            of a layer is parametrized.
    """
    _check_bits(bits)
    check_skip(network, skip)

    def is_converted(name: str, layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Linear | nn.Conv2d) or is_skipped(name, skip):
            return False
        if parametrize.is_parametrized(layer):
            raise ValueError(f"{name} is parametrized already: convert the network to DFP first, or add it to skip")
        return type(layer) in (nn.Linear, nn.Conv2d, DFPLinear, DFPConv2d)

    def build(layer: nn.Module) -> nn.Module:
        new: DFPLinear | DFPConv2d
        if isinstance(layer, nn.Linear):
            new = DFPLinear(layer.in_features, layer.out_features, layer.bias is not None, bits=bits)
        else:
            conv = cast(nn.Conv2d, layer)
            new = DFPConv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
                conv.bias is not None,
                conv.padding_mode,
                bits=bits,
            )
        new.weight, new.bias = layer.weight, layer.bias  # type: ignore[assignment]  # the same: frozen and tied as before
        return new

    return replace_modules(network, is_converted, build)


class _Quantize(torch.autograd.Function):
    """Values that integers with one exponent have, in float64; the gradient passes as it is."""

    generate_vmap_rule = True  # for gradients per sample

    @staticmethod
    def forward(x: Tensor, bits: int) -> Tensor:
        return _round_trip(x, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


class _QuantizeGradient(torch.autograd.Function):
    """Passes values as they are, and quantises their gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bits: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.bits = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _round_trip(gradient, ctx.bits), None


def _round_trip(x: Tensor, bits: int) -> Tensor:
    """``x`` as integers with one exponent would have it, in float64, without waiting for the device."""
    if not x.numel():
        return x.to(torch.float64)
    largest = x.abs().amax()
    exponent = _exponent(largest, bits)
    values = _mantissa(x, exponent, bits) * torch.exp2(exponent)
    return torch.where(largest.isfinite(), values, torch.nan)


def _exponent(largest: Tensor, bits: int) -> Tensor:
    """The exponent that gives ``largest`` all bits, float64; 0 for 0."""
    exponent = torch.frexp(largest.to(torch.float64)).exponent - (bits - 1)
    return torch.where(largest == 0, 0, exponent).to(torch.float64)


def _mantissa(x: Tensor, exponent: Tensor, bits: int) -> Tensor:
    limit = 2 ** (bits - 1) - 1
    return (x.to(torch.float64) * torch.exp2(-exponent)).round().clamp(-limit, limit)


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must lie in 2..16, got {bits}")
