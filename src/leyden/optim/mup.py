"""Learning rates that stay good when a network is made wider: the simple form of the maximal update parametrisation.

M. Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv 2309.14322,
section 3.2 (muParam); G. Yang et al., "Tensor Programs V", 2022, table 8, for Adam. This sets learning rates only; the
output layer should start small. That attention keeps its scale of ``1 / sqrt(d)`` in this form is unverified.
"""

from typing import Any

from torch import Tensor, nn

from leyden.core.network import Network

__all__ = ["mup_param_groups"]


def mup_param_groups(model: Network, lr: float, *, base_width: int) -> list[dict[str, Any]]:
    """Groups for Adam-like optimizers: hidden matrices get ``lr * base_width / width``, all else keeps ``lr``.

    The width is the network's ``feature_dim``. Hidden are matrices whose fan-in is a multiple of it (the factor is then
    the fan-in of the layer in a network of ``base_width``, over its own), other than embeddings. The settings can also
    be written in YAML, as patterns with an ``lr_scale`` in the method's ``param_groups``.

    Args:
        model: the network.
        lr: learning rate that is good for a network of ``base_width``.
        base_width: width at which all rates are the same.

    Returns:
        The group of the hidden matrices, then the others; parameters without gradient are left out.

    Raises:
        ValueError: ``lr`` or ``base_width`` is not positive.
    """
    if lr <= 0.0:
        raise ValueError(f"lr must be positive, got {lr}")
    if base_width < 1:
        raise ValueError(f"base_width must be at least 1, got {base_width}")
    width = model.feature_dim
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    hidden: list[Tensor] = []
    others: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            is_hidden = p.ndim == 2 and p.shape[1] % width == 0 and id(p) not in embeddings
            (hidden if is_hidden else others).append(p)
    groups = [{"params": hidden, "lr": lr * base_width / width}, {"params": others, "lr": lr}]
    return [group for group in groups if group["params"]]
