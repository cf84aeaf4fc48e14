"""DARE: drop and rescale differences of fine-tuned weights (L. Yu et al., 2023, arXiv 2311.03099, section 3.2).

With the factor of "DARE the Extreme" (W. Deng et al., 2024, arXiv 2410.09344, section 4.1) in place of 1 - p.
"""

from collections.abc import Mapping
from statistics import fmean
from zlib import crc32

import torch
from torch import Tensor

from leyden.weights._states import Lazy, State, by_tensor, is_averaged, is_dtensor

__all__ = ["dare"]


def dare(
    delta: State,
    *,
    drop_rate: float = 0.9,
    rescale: float | Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Sets entries of a task vector to zero at random and divides those that are left by ``rescale``.

    What is dropped depends on the generator's next number and the tensor's name alone: not on the order of the names,
    the device, or how the tensor is sharded.

    Args:
        delta: task vector or reader; entries that are not floating point are left as they are.
        drop_rate: p, in [0, 1].
        rescale: q; ``1 - drop_rate`` if None. By name, names that it lacks have the mean of its values.
        generator: on the CPU; torch's own if None.

    Raises:
        ValueError: ``drop_rate`` is outside of [0, 1], or a ``rescale`` is not positive.
    """
    lazy = lazy_dare(delta, drop_rate=drop_rate, rescale=rescale, generator=generator)
    return by_tensor([lazy], lazy.__getitem__)


def lazy_dare(
    delta: State,
    *,
    drop_rate: float,
    rescale: float | Mapping[str, float] | None,
    generator: torch.Generator | None,
) -> State:
    """`dare` whose entries are computed when they are read, always to the same values."""
    if not 0.0 <= drop_rate <= 1.0:
        raise ValueError(f"drop_rate must lie in [0, 1], got {drop_rate}")
    factors = dict(rescale) if isinstance(rescale, Mapping) else {}
    other = 1.0 - drop_rate if rescale is None else fmean(factors.values()) if factors else float(rescale)  # type: ignore[arg-type]
    if any(not q > 0.0 for q in ([other] if rescale is not None else []) + list(factors.values())):
        raise ValueError(f"rescale must be positive, got {rescale}")
    seed = int(torch.randint(2**62, (), generator=generator))

    @torch.no_grad()
    def dropped(name: str) -> Tensor:
        tensor = delta[name]
        if not is_averaged(delta, name):
            return tensor.clone()
        if drop_rate == 1.0:
            return torch.zeros_like(tensor)
        own = torch.Generator().manual_seed((seed + crc32(name.encode())) % 2**63)
        kept = torch.rand(tensor.shape, generator=own) >= drop_rate
        return torch.where(_placed(kept, tensor), tensor / factors.get(name, other), 0.0)

    return Lazy(list(delta), dropped, [delta])


def _placed(kept: Tensor, like: Tensor) -> Tensor:
    if not is_dtensor(like):
        return kept.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    # every process has drawn the whole mask: each takes its part
    return distribute_tensor(kept.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
