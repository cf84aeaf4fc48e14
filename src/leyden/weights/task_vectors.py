"""Task arithmetic: differences of fine-tuned weights to their base (G. Ilharco et al., 2022, arXiv 2212.04089)."""

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
    is_averaged,
    is_excluded,
)

__all__ = ["add_task_vectors", "task_vector"]


def task_vector(finetuned: State, base: State, *, exclude: Collection[str] = ()) -> dict[str, Tensor]:
    """Returns ``finetuned - base``, in float32 at least; entries that are not floating point have no difference.

    Args:
        finetuned: state dict or reader.
        base: state dict or reader of the weights before.
        exclude: names or ``fnmatch`` patterns of entries that are left out (heads of other shapes).

    Raises:
        ValueError: names or shapes of the other entries differ.
    """
    return dict(lazy_task_vector(finetuned, base, exclude=exclude))


def lazy_task_vector(finetuned: State, base: State, *, exclude: Collection[str] = ()) -> State:
    """`task_vector` whose entries are computed when they are read."""
    kept = [[name for name in state if not is_excluded(name, exclude)] for state in (base, finetuned)]
    check_names([dict.fromkeys(names) for names in kept])  # type: ignore[misc]

    @torch.no_grad()
    def difference(name: str) -> Tensor:
        before, after = base[name], finetuned[name]
        check_shape(name, after, before)
        return after.to(before.device, computed_dtype(before)) - before

    return Lazy([name for name in kept[0] if is_averaged(base, name)], difference, [base, finetuned])


@torch.no_grad()
def add_task_vectors(base: State, vectors: Sequence[State], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Returns ``base + scale * sum of vectors``, on the device and in the dtype of ``base``.

    Args:
        base: state dict or reader.
        vectors: of `task_vector`; entries of the base that they lack are copied.
        scale: of the sum.

    Raises:
        ValueError: a vector has a name that the base lacks, or another shape.
    """
    for vector in vectors:
        if strange := next((name for name in vector if name not in base), None):
            raise ValueError(f"the base has no {strange!r} of a task vector")

    def entry(name: str) -> Tensor:
        start = base[name]
        total = start.to(computed_dtype(start) if start.is_floating_point() else start.dtype, copy=True)
        for vector in vectors:
            if name in vector:
                change = vector[name]
                check_shape(name, change, start)
                total.add_(change.to(start.device), alpha=scale)
        return total.to(start.dtype)

    return by_tensor([base, *vectors], entry)
