"""SigmaReparam (S. Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023,
arXiv 2303.06296, equation 2): a weight is divided by its spectral norm and multiplied by a learned scalar, so that the
scale of a layer's output moves with that scalar and cannot run away with the weight.

Original code: apple/ml-sigma-reparam, ``vision/layers.py``. The scalar starts as the spectral norm, which leaves the
layer as it was, as that code does; the paper's text and ``speech/layers.py`` start it as 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.nn._layers import check_skip, is_skipped

__all__ = ["SigmaReparam", "apply_sigma_reparam"]


class SigmaReparam(nn.Module):
    """``gamma * weight / sigma``, a parametrization for `torch.nn.utils.parametrize`.

    ``sigma`` is the largest singular value of the weight as a matrix ``[out, rest]``, followed by one power iteration
    per call, in float32 at least; its gradient flows through the weight alone. In training a call moves the estimate:
    wrap the uses of one step in ``parametrize.cached()``, as `leyden.core.Method` does.

    Args:
        weight: as it is before, ``[out, ...]`` with 2 or more dimensions.

    Attributes:
        gamma: the learned spectral norm, ``[1]``; not to be decayed.
        u: right singular vector of ``sigma``, ``[rest]``, a buffer.

    Raises:
        ValueError: the weight has fewer dimensions, or no spectral norm to divide by (it is 0 or not finite).
    """

    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.ndim < 2:
            raise ValueError(f"weight must have 2 or more dimensions, got shape {tuple(weight.shape)}")
        matrix = _matrix(weight.detach())
        if not (matrix.isfinite().all() and matrix.any()):
            raise ValueError("weight must be finite and not all 0: it is divided by its spectral norm")
        _, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        self.gamma = nn.Parameter(sigma[:1].to(weight.dtype))
        self.register_buffer("u", right[0].clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight that the layer uses, in the shape and dtype of the one that is trained."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = _matrix(weight)
            with torch.no_grad():
                v = functional.normalize(matrix @ self.u.to(matrix.dtype), dim=0)
                u = functional.normalize(matrix.T @ v, dim=0)
                if self.training:
                    self.u.copy_(u)
            sigma = v @ (matrix @ u)
            return (matrix * (self.gamma / sigma)).view_as(weight).to(weight.dtype)


def apply_sigma_reparam(network: nn.Module, skip: Sequence[str] = ()) -> list[str]:
    """Reparametrizes the weight of every `torch.nn.Linear` and `torch.nn.Conv2d`, in place; biases stay as they are.

    A layer that was reparametrized before is left alone. A weight that another layer shares (as an embedding may share
    that of the head) stays shared: the other layer goes on using the plain weight.

    Args:
        network: the network.
        skip: dotted names of modules that are left out, with all that is in them.

    Returns:
        Dotted names of the layers that are reparametrized now.

    Raises:
        ValueError: there is no such layer or no module of a name in ``skip``, or a weight is 0 or not finite.
    """
    check_skip(network, skip)
    names = []
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d) or is_skipped(name, skip):
            continue
        names.append(name)
        if parametrize.is_parametrized(layer, "weight") and any(
            isinstance(part, SigmaReparam)
            for part in layer.parametrizations.weight  # type: ignore[union-attr]
        ):
            continue
        try:
            reparam = SigmaReparam(layer.weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; add it to skip") from None
        parametrize.register_parametrization(layer, "weight", reparam.to(layer.weight.device).train(layer.training))
    if not names:
        raise ValueError(f"{type(network).__name__} has no Linear and no Conv2d to reparametrize")
    return names


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
