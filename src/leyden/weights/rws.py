"""Robust weight signatures (R. Cai, Z. Zhang, Z. Wang, "Robust Weight Signatures: Gaining Robustness as Easy as
Patching Weights?", 2023, arXiv 2302.12480).

Original code: VITA-Group/Robust_Weight_Signatures, ``model_patching.py``. Of several signatures it multiplies each by
its strength before the projection and again after it; here a strength counts once. It also replaces batch norms by
those of the robust models; here they are patched where ``keys`` names them, and their statistics may be measured
afterwards.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from leyden.weights._states import (
    Lazy,
    State,
    by_tensor,
    check_names,
    check_shape,
    computed_dtype,
    dtype_of,
    is_averaged,
    is_excluded,
    shape_of,
)
from leyden.weights.task_vectors import add_task_vectors

__all__ = ["add_signatures", "quantize_signature", "robust_weight_signature", "shallow_keys"]


def shallow_keys(state: State, num_layers: int) -> list[str]:
    """Names of the first weights of linear layers and convolutions, with their biases.

    Args:
        state: state dict or reader, in the order of the layers.
        num_layers: so many tensors of two dimensions or more, and the ``bias`` beside each.

    Raises:
        ValueError: there are fewer layers, or ``num_layers`` is below 1.
    """
    weights = [name for name in state if is_averaged(state, name) and len(shape_of(state, name)) >= 2]
    if not 1 <= num_layers <= len(weights):
        raise ValueError(f"num_layers must lie in 1..{len(weights)}, got {num_layers}")
    chosen = set(weights[:num_layers])
    chosen |= {name.removesuffix("weight") + "bias" for name in chosen if name.endswith("weight")}
    return [name for name in state if name in chosen]


@torch.no_grad()
def robust_weight_signature(
    robust: State, clean: State, pretrained: State, *, keys: Collection[str]
) -> dict[str, Tensor]:
    """The part of what robust training changes that is orthogonal to what clean training changes, tensor by tensor.

    ``v - <v, a> / <a, a> a`` with ``v = robust - pretrained`` and ``a = clean - pretrained``; v where a is 0.

    Args:
        robust: state dict or reader of the model that was trained on corrupted data.
        clean: that of the one trained on clean data, with the same settings.
        pretrained: what both have started from; gives the device.
        keys: names or ``fnmatch`` patterns of the entries; see `shallow_keys`.

    Returns:
        The entries that ``keys`` means, in float32 at least.

    Raises:
        ValueError: names or shapes of these entries differ, a key means nothing, or an entry that is not floating
            point.
    """
    kept = [dict.fromkeys(name for name in state if is_excluded(name, keys)) for state in (pretrained, clean, robust)]
    check_names(kept)  # type: ignore[arg-type]
    names = list(kept[0])
    for key in keys:
        if not any(is_excluded(name, [key]) for name in names):
            raise ValueError(f"keys must be names of entries, there is no {key!r}")
    if wrong := next((name for name in names if not dtype_of(pretrained, name).is_floating_point), None):
        raise ValueError(f"keys must be of floating point entries, {wrong!r} is {dtype_of(pretrained, wrong)}")

    def signature(name: str) -> Tensor:
        start = pretrained[name]

        def move(state: State) -> Tensor:
            end = state[name]
            check_shape(name, end, start)
            return end.to(start.device, computed_dtype(start)) - start

        v, a = move(robust), move(clean)
        inner, square = ((x * a).sum(dtype=torch.float64) for x in (v, a))  # many small numbers
        share = torch.where(square > 0.0, inner / square, 0.0)
        return v - share.to(v.dtype) * a

    return by_tensor([Lazy(names, signature, [robust, clean, pretrained])], signature)


def add_signatures(
    state: State, signatures: Sequence[State], *, strengths: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Patches weights, ``state + sum_k strength_k signature_k``; a negative strength takes a patch off again.

    Args:
        state: state dict or reader: of the clean model, or of another of the same shapes.
        signatures: of `robust_weight_signature`; entries that they lack are copied.
        strengths: one per signature; 1 each if None.

    Raises:
        ValueError: a signature has a name that the state lacks, or another shape; or there is no strength for each.
    """
    numbers = [1.0] * len(signatures) if strengths is None else list(strengths)
    if len(numbers) != len(signatures):
        raise ValueError(f"strengths must be one per signature: {len(signatures)} numbers, got {len(numbers)}")

    def scaled(signature: State, strength: float) -> State:
        return Lazy(list(signature), lambda name: strength * signature[name], [signature])

    return add_task_vectors(state, [scaled(*pair) for pair in zip(signatures, numbers, strict=True)])


@torch.no_grad()
def quantize_signature(signature: State, *, levels: int = 256) -> dict[str, Tensor]:
    """Rounds each tensor to so many values, evenly spaced from its smallest to its largest.

    Args:
        signature: of `robust_weight_signature`.
        levels: number of values, at least 2.

    Returns:
        The rounded values; a tensor of one value stays as it is.

    Raises:
        ValueError: ``levels`` is below 2.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")

    def rounded(name: str) -> Tensor:
        x = signature[name]
        if x.numel() == 0:
            return x.clone()
        low, high = x.min(), x.max()
        share = ((x - low) / (high - low) * (levels - 1)).round() / (levels - 1)
        # from the nearer end, so that both are met exactly
        near = torch.where(share < 0.5, low + share * (high - low), high - (1.0 - share) * (high - low))
        return torch.where(high > low, near, x)

    return by_tensor([signature], rounded)
