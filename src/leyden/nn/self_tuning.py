"""Layers that respond to hyperparameters (M. MacKay, P. Vicol, J. Lorraine, D. Duvenaud, R. Grosse, "Self-Tuning
Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions", 2019, arXiv 1903.03088,
section 3; authors' code: asteroidhouse/self-tuning-networks)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.random import normal, uniform

__all__ = [
    "HyperConv2d",
    "HyperLinear",
    "Hyperparameters",
    "per_example_dropout",
    "stretched_logit",
    "stretched_sigmoid",
]

_STREAM = 0x57  # perturbations are not drawn by the numbers that augmentation draws by


def stretched_sigmoid(x: Tensor, low: float, high: float) -> Tensor:
    """Maps real numbers to ``(low, high)``."""
    return low + (high - low) * x.sigmoid()


def stretched_logit(y: Tensor, low: float, high: float) -> Tensor:
    """Inverse of `stretched_sigmoid`."""
    return ((y - low) / (high - low)).logit()


def per_example_dropout(x: Tensor, p: Tensor, keys: Tensor, *, stream: int = 0) -> Tensor:
    """Dropout with a rate for each example.

    Args:
        x: ``[N, ...]``.
        p: rates in [0, 1), ``[N]`` or ``[1]``.
        keys: one per example, from which the draw is made (`leyden.core.random`), int64 ``[N]``.
        stream: number of the draw.
    """
    p = p.view(-1, *[1] * (x.ndim - 1))
    kept = uniform(keys, *x.shape[1:], stream=stream) >= p
    return (x * kept / (1.0 - p)).to(x.dtype)


class Hyperparameters(nn.Module):
    """Hyperparameters as real numbers, and the scales at which training perturbs them.

    The parameters ``h`` and ``raw_scale``, ``[H]`` each, ask for no gradient: whatever trains a network leaves them as
    they are. A bounded hyperparameter is the `stretched_sigmoid` of its real number, one without upper bound is
    ``low + softplus(h)``, and a scale is ``softplus(raw_scale)``.

    Args:
        start: first value of each hyperparameter, by name.
        ranges: lowest and highest value by name, which are never reached; the highest may be infinite.
        scale: first standard deviation of the perturbations, of the real numbers.

    Raises:
        ValueError: there is no hyperparameter, one is out of its range, or ``scale`` is not positive.
    """

    def __init__(
        self, start: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], *, scale: float = 0.5
    ) -> None:
        super().__init__()
        if not start:
            raise ValueError("there must be one hyperparameter or more")
        for name, value in start.items():
            low, high = ranges[name]
            if not low < value < high:
                raise ValueError(f"{name} must lie between {low} and {high}, both excluded, got {value}")
        if not scale > 0.0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.ranges = {name: tuple(ranges[name]) for name in start}
        h = torch.stack([_from_range(torch.tensor(start[name]), *bounds) for name, bounds in self.ranges.items()])
        self.h = nn.Parameter(h, requires_grad=False)
        self.raw_scale = nn.Parameter(_inverse_softplus(torch.full_like(h, scale)), requires_grad=False)

    def perturb(self, keys: Tensor) -> Tensor:
        """Normal perturbations of the real numbers, ``[N, H]``, drawn by keys, int64 ``[N]``."""
        noise = normal(keys, len(self.h), stream=_STREAM).to(self.h.dtype)
        return self.h + functional.softplus(self.raw_scale) * noise

    def values(self, h: Tensor) -> dict[str, Tensor]:
        """Hyperparameters by name, ``[N]`` each, of real numbers ``[N, H]``."""
        return {
            name: _to_range(column, *bounds) for column, (name, bounds) in zip(h.T, self.ranges.items(), strict=True)
        }


class _HyperLayer(nn.Module):
    """A layer whose output is one layer's plus another's, of which each channel is scaled by hyperparameters."""

    bias: nn.Parameter | None
    response_bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], num_hparams: int, *, bias: bool) -> None:
        super().__init__()
        if min(shape) < 1 or num_hparams < 1:
            raise ValueError(f"sizes and num_hparams must be 1 or more, got {shape} and {num_hparams}")
        bound = 1.0 / math.sqrt(math.prod(shape[1:]))
        self.weight, self.response_weight = (_uniform(bound, *shape) for _ in range(2))
        self.register_parameter("bias", _uniform(bound, shape[0]) if bias else None)
        self.register_parameter("response_bias", _uniform(bound, shape[0]) if bias else None)
        self.response_scale = nn.Parameter(torch.empty(2 * shape[0], num_hparams).normal_(std=0.01))
        self.elem_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Runs the layer.

        Args:
            x: inputs.
            h: real numbers of the hyperparameters, ``[N, H]``, or ``[1, H]`` for all inputs; None leaves out the
                response to them.
        """
        y = self.elem_scale * self._layer(x, self.weight, self.bias)
        if h is None:
            return y
        scales = functional.linear(h, self.response_scale)
        scale, bias_scale = scales.view(len(h), -1, *[1] * (x.ndim - 2)).chunk(2, 1)  # [N, out, ...]
        y = y + scale * self._layer(x, self.response_weight, None)
        if self.response_bias is not None:
            y = y + bias_scale * self.response_bias.view(-1, *[1] * (x.ndim - 2))
        return y

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class HyperLinear(_HyperLayer):
    """Linear layer that responds to hyperparameters, for inputs ``[N, in_features]``.

    With ``c, d = h @ response_scale.T`` it gives ``elem_scale * (W x + b) + c * (V x) + d * v``; V and v are
    ``response_weight`` and ``response_bias``.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        num_hparams: H, number of hyperparameters.
        bias: whether there are b and v.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, in_features: int, out_features: int, num_hparams: int, bias: bool = True) -> None:
        super().__init__((out_features, in_features), num_hparams, bias=bias)

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)


class HyperConv2d(_HyperLayer):
    """Convolution that responds to hyperparameters as `HyperLinear` does, for images ``[N, in_channels, H, W]``.

    Args:
        in_channels: channels of an input.
        out_channels: channels of an output.
        kernel_size: height and width of the kernel.
        num_hparams: number of hyperparameters.
        stride: as in `torch.nn.Conv2d`, like the next two.
        padding: see there.
        bias: see there.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_hparams: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), num_hparams, bias=bias)
        self.settings: dict[str, Any] = {"stride": stride, "padding": padding}

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, **self.settings)


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))  # log(exp(y) - 1), also for a large y


def _from_range(y: Tensor, low: float, high: float) -> Tensor:
    return _inverse_softplus(y - low) if math.isinf(high) else stretched_logit(y, low, high)


def _to_range(x: Tensor, low: float, high: float) -> Tensor:
    return low + functional.softplus(x) if math.isinf(high) else stretched_sigmoid(x, low, high)
