"""Learned proximal networks (Z. Fang, S. Buchanan, J. Sulam, "What's in a Prior? Learned Proximal Networks for Inverse
Problems", 2023, arXiv 2310.14344, section 3.1; authors' code: ZhenghanFang/learned-proximal-networks).

The gradient of a convex function is the proximal operator of some function, which need not be convex itself. It is
computed by its formula and not by autograd, so that it needs no gradients: in inference mode, and when exported.
"""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from leyden.core.network import Network

__all__ = ["LearnedProximalNetwork"]


class LearnedProximalNetwork(Network):
    """The gradient of a convex potential: a network that is the proximal operator of some function, exactly.

    The potential is ``psi(x) = <w, h_K> + strong_convexity ||x||^2`` with ``h_1 = s(A_1 x + b_1)`` and ``h_k = s(W_k
    h_{k-1} + A_k x + b_k)``, where ``s`` is softplus. It is convex while no entry of ``w`` and of ``W_k`` is negative:
    they start so, as ``exp(N(-log(fan_in), 0.1^2))``, and `leyden.callbacks.ConvexWeights` keeps them so. The authors
    start from a mean of -10, which short trainings do not get away from.

    Args:
        dim: D, numbers in one input.
        hidden: sizes of ``h_1`` to ``h_K``.
        beta: of softplus; a larger one comes nearer to ReLU.
        strong_convexity: factor of the squared norm.

    Raises:
        ValueError: a size is below 1, ``beta`` is not positive, or ``strong_convexity`` is negative.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int] = (64, 64), *, beta: float = 10.0, strong_convexity: float = 0.0
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be 1 or more, got {dim}")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must hold at least one size, each 1 or more, got {tuple(hidden)}")
        if not beta > 0.0:
            raise ValueError(f"beta must be positive, got {beta}")
        if strong_convexity < 0.0:
            raise ValueError(f"strong_convexity must be at least 0, got {strong_convexity}")
        self.beta = beta
        self.strong_convexity = strong_convexity
        self.feature_dim = dim
        self.affine = nn.ModuleList([nn.Linear(dim, size) for size in hidden])  # A_k, b_k
        sizes = itertools.pairwise([*hidden, 1])
        self.convex = nn.ModuleList([nn.Linear(fan_in, size, bias=False) for fan_in, size in sizes])  # W_k, then w
        self.head = nn.Identity()
        for layer in self._convex_layers():
            nn.init.normal_(layer.weight, -math.log(layer.in_features), 0.1)
            layer.weight.data.exp_()

    def potential(self, x: Tensor) -> Tensor:
        """The convex function, ``[N]``, for inputs ``[N, ...]`` of D numbers each."""
        x = x.flatten(1)
        h = functional.softplus(self._preactivations(x)[-1], self.beta)
        return self.convex[-1](h).squeeze(-1) + self.strong_convexity * x.square().sum(-1)

    def features(self, x: Tensor) -> Tensor:
        """The gradient of `potential` by its input, ``[N, D]``; in float32 or better, also under autocast."""
        affine, convex = ([cast(Tensor, layer.weight) for layer in layers] for layers in (self.affine, self.convex))
        with torch.autocast(x.device.type, enabled=False):
            x = x.flatten(1).to(convex[-1].dtype)
            gradient = 2.0 * self.strong_convexity * x
            upper = convex[-1]  # of the potential by h_k: [1, H] or [N, H]
            for number, z in reversed(list(enumerate(self._preactivations(x)))):
                upper = upper * torch.sigmoid(self.beta * z)
                gradient = gradient + upper @ affine[number]
                if number:
                    upper = upper @ convex[number - 1]
            return gradient

    @torch.no_grad()
    def clamp_weights_(self) -> None:
        """Sets negative entries of ``w`` and ``W_k`` to 0."""
        for layer in self._convex_layers():
            layer.weight.clamp_(min=0.0)

    def _preactivations(self, x: Tensor) -> list[Tensor]:
        zs = [self.affine[0](x)]
        for affine, convex in zip(self.affine[1:], self.convex[:-1], strict=True):
            zs.append(convex(functional.softplus(zs[-1], self.beta)) + affine(x))
        return zs

    def _convex_layers(self) -> list[nn.Linear]:
        return list(self.convex)  # type: ignore[arg-type]
