"""Weight compander (R. Cakaj, J. Mehnert, B. Yang, "Weight Compander: A Simple Weight Reparameterization for
Regularization", 2023, arXiv 2306.16993): each weight is ``a arctan(v / b)`` of what is trained, which bounds it and, if
``a > b``, moves it away from 0.

The authors have published no code. Unverified: the values that ``a`` and ``b`` start from, how they are kept positive
(here: by learning their logarithms), and that weight decay acts on ``v``.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leyden.nn._layers import check_skip, is_skipped

__all__ = ["WeightCompander", "apply_weight_compander"]

SHARE = 0.99  # of the bound, which arctan reaches at infinity only


class WeightCompander(nn.Module):
    """``a arctan(v / b)``, a parametrization for `torch.nn.utils.parametrize`.

    Computed in float32 at least. An assigned weight is clamped to 0.99 of the bound ``a pi / 2``.

    Args:
        a: the weights lie within ``a pi / 2``.
        b: the larger, the nearer to linear; small weights are ``a / b`` times ``v``.
        learnable: whether ``a`` and ``b`` are trained.

    Attributes:
        log_a: ``log a``, ``[1]``; not to be decayed.
        log_b: ``log b``, ``[1]``; not to be decayed.

    Raises:
        ValueError: ``a`` or ``b`` is not positive and finite.
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, *, learnable: bool = True) -> None:
        super().__init__()
        for name, value in (("a", a), ("b", b)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.log_a = nn.Parameter(torch.tensor([math.log(a)]), requires_grad=learnable)  # sharding takes no scalars
        self.log_b = nn.Parameter(torch.tensor([math.log(b)]), requires_grad=learnable)

    def forward(self, v: Tensor) -> Tensor:
        """Returns the weight that the layer uses, in the shape and dtype of the one that is trained."""
        wide = torch.promote_types(v.dtype, torch.float32)
        a, b = self.log_a.to(wide).exp(), self.log_b.to(wide).exp()
        return (a * torch.atan(v.to(wide) / b)).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns ``v = b tan(w / a)`` of an assigned weight."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = self.log_a.to(wide).exp(), self.log_b.to(wide).exp()
        limit = SHARE * math.pi / 2
        return (b * torch.tan((weight.to(wide) / a).clamp(-limit, limit))).to(weight.dtype)


def apply_weight_compander(
    module: nn.Module,
    *,
    a: float = 1.0,
    b: float = 1.0,
    learnable: bool = True,
    types: Sequence[type[nn.Module]] = (nn.Linear, nn.Conv2d),
    skip: Sequence[str] = (),
) -> list[str]:
    """Reparametrizes the weight of every layer of some types, in place; the network starts as it was.

    Biases and norms stay as they are, and so does a layer that was reparametrized so before. Where there are other
    parametrizations, this one is put on what they give, and the layer does not start as it was.

    Args:
        module: the network.
        a: as in `WeightCompander`; each layer has its own.
        b: as in `WeightCompander`.
        learnable: as in `WeightCompander`.
        types: classes of the layers.
        skip: dotted names of modules that are left out, with all that is in them.

    Returns:
        Dotted names of the layers that are reparametrized now.

    Raises:
        ValueError: there is no such layer or no module of a name in ``skip``, another layer shares a weight, or one is
            too large for ``a``.
    """
    check_skip(module, skip)
    layers = {
        name: cast(nn.Module, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, tuple(types)) and not is_skipped(name, skip)
    }
    if not layers:
        raise ValueError(
            f"{type(module).__name__} has no {' and no '.join(t.__name__ for t in types)} to reparametrize"
        )
    uses = Counter(id(p) for part in module.modules() for p in part._parameters.values() if p is not None)
    for name, layer in layers.items():
        if not parametrize.is_parametrized(layer, "weight"):
            weight = cast(Tensor, layer.weight)
            if uses[id(weight)] > 1:
                raise ValueError(f"{name}: another layer uses this weight too; add {name!r} to skip")
            largest, limit = weight.detach().abs().max().item(), SHARE * a * math.pi / 2
            if not largest <= limit:
                raise ValueError(f"{name}: a={a} bounds weights to {limit:.3g}, but one is {largest:.3g}; increase a")
    for layer in layers.values():
        if not _is_companded(layer):
            compander = WeightCompander(a, b, learnable=learnable).to(cast(Tensor, layer.weight))
            parametrize.register_parametrization(layer, "weight", compander)
    return list(layers)


def _is_companded(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(part, WeightCompander)
        for part in layer.parametrizations.weight  # type: ignore[union-attr]
    )
