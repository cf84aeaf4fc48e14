"""LoRA (E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685, equation 3)."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.core.surgery import replace_modules
from leyden.nn._layers import check_skip, is_skipped

__all__ = ["LoRALinear", "apply_lora", "merge_lora"]


class LoRALinear(nn.Module):
    """A linear layer with fixed weights and a trained update of low rank, ``W x + b + (alpha / rank) B A x``.

    Its ``weight`` and ``bias`` are those of the layer that it is made from, which get no gradients any more.

    Args:
        base: the layer.
        rank: of the update.
        alpha: its scale, times ``rank``.

    Attributes:
        lora_a: A, ``[rank, in]``, uniform as `torch.nn.Linear` starts.
        lora_b: B, ``[out, rank]``, zeros: at first the layer is as it was.

    Raises:
        ValueError: ``rank`` is out of range, or ``alpha`` is not positive.
    """

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        _check(base, rank, alpha)
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.alpha = rank, alpha
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        for p in base.parameters():
            p.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``[..., in]`` to ``[..., out]``."""
        update = functional.linear(functional.linear(input, self.lora_a), self.lora_b)
        return functional.linear(input, self.weight, self.bias) + self.alpha / self.rank * update

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Returns a plain layer with the same outputs, which can be trained as a whole."""
        merged = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        merged.weight = nn.Parameter(self.weight + self.alpha / self.rank * self.lora_b @ self.lora_a)
        if self.bias is not None:
            merged.bias = nn.Parameter(self.bias.clone())
        return merged.train(self.training)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, alpha={self.alpha}"


def apply_lora(
    module: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    match: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
) -> list[str]:
    """Turns linear layers into `LoRALinear`, in place, and keeps the other parameters from being trained.

    A layer that is one already stays as it is. So do subclasses of `torch.nn.Linear`, which may use their weights in
    another way.

    Args:
        module: the network.
        rank: as in `LoRALinear`.
        alpha: as in `LoRALinear`.
        match: shell-style patterns of the layers' dotted names; ``*`` spans dots too.
        skip: dotted names of modules that stay as they are and are trained as a whole, such as a new ``head``.

    Returns:
        Dotted names of the layers that have an update of low rank now.

    Raises:
        ValueError: a pattern matches no linear layer, there is no module of a name in ``skip``, a layer is
            parametrized, or an argument is out of range.
    """
    check_skip(module, skip)
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if parametrize.type_before_parametrizations(layer) in (nn.Linear, LoRALinear) and not is_skipped(name, skip)
    }
    for pattern in match:
        if not any(fnmatchcase(name, pattern) for name in layers):
            there = ", ".join(layers) or "of which there are none"
            raise ValueError(f"match: {pattern!r} matches none of the linear layers, {there}")
    names = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in match)]
    plain = [name for name in names if not isinstance(layers[name], LoRALinear)]
    for name in plain:
        if parametrize.is_parametrized(layers[name]):
            raise ValueError(f"{name} is parametrized: apply LoRA before that")
        _check(layers[name], rank, alpha)
    if plain:
        replace_modules(
            module, lambda name, _: name in plain, lambda layer: LoRALinear(cast(nn.Linear, layer), rank, alpha)
        )
    for name, p in module.named_parameters():
        if not (is_skipped(name, skip) or name.endswith((".lora_a", ".lora_b"))):
            p.requires_grad_(False)
    return names


def merge_lora(module: nn.Module) -> None:
    """Turns every `LoRALinear` within a network into a plain layer with the same outputs, in place."""
    merged: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, LoRALinear):
                if child not in merged:  # it may stand in several places
                    merged[child] = child.merge()
                parent._modules[name] = merged[child]


def _check(layer: nn.Module, rank: int, alpha: float) -> None:
    sizes = cast(int, layer.in_features), cast(int, layer.out_features)
    if not 1 <= rank <= min(sizes):
        raise ValueError(
            f"rank must lie in 1..{min(sizes)} for a layer of {sizes[0]} inputs and {sizes[1]} outputs, got {rank}"
        )
    if not alpha > 0.0:
        raise ValueError(f"alpha must be positive, got {alpha}")
