"""Masks that leave the hard instances of a bag (W. Tang and others, "Multiple Instance Learning Framework with Masked
Hard Instance Mining for Whole Slide Image Classification", 2023, arXiv 2307.15254, section 3.2; scores by class: "...
for Gigapixel Histopathology Image Analysis", 2025, arXiv 2509.11526; authors' code: DearCaat/MHIM-MIL).
"""

import torch
from torch import Tensor

from leyden.core.random import uniform
from leyden.nn._smallest import smallest

__all__ = ["hard_instance_keep", "hard_instance_mask", "instance_class_scores"]

_HIGH, _RANDOM = 0xB0, 0xB1  # streams of random numbers, other than those of augmentation


def instance_class_scores(features: Tensor, attention: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """How sure a bag's classifier is of each instance by itself: the largest softmax of its classes.

    Args:
        features: of the instances, ``[..., N, D]``.
        attention: weight of each in the bag, ``[..., N]``.
        weight: of the classifier, ``[C, D]``.
        bias: not used: the authors' code adds the first entry to all classes, which a softmax does not see.

    Returns:
        ``[..., N]``.

    Raises:
        ValueError: features and attention do not have one row per instance.
    """
    if attention.shape != features.shape[:-1]:
        raise ValueError(
            f"features must be [..., N, D] and attention [..., N], got {tuple(features.shape)} and "
            f"{tuple(attention.shape)}"
        )
    scores = (attention.unsqueeze(-1) * features).to(weight.dtype) @ weight.T
    # small numbers, near 0: the softmax of 16 bits would make many of them the same
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).amax(-1)


def hard_instance_mask(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    keys: Tensor,
    high_ratio: float,
    low_ratio: float = 0.0,
    random_ratio: float = 0.0,
    high_random: float = 1.0,
) -> Tensor:
    """Which instances of bags stay when the easiest, and others, are masked; without waiting for a GPU.

    Shares are of the instances that a bag has, and rounded up.

    Args:
        scores: how easy each is, such as a teacher's attention, ``[B, N]``; or of several heads, ``[B, H, N]``, of
            which each votes for as many as are masked.
        mask: which instances there are, bool ``[B, N]``; all if None.
        keys: of the draws, one per bag, int64 ``[B]``; see `leyden.core.random`.
        high_ratio: share of a bag that is masked for its high scores.
        low_ratio: share that is masked for its low scores.
        random_ratio: share that is masked at random.
        high_random: share of the highest that is masked, drawn at random: these are ``high_ratio / high_random`` of the
            bag, or the whole of it if that is above 1.

    Returns:
        bool ``[B, N]``; where all would be masked, the instance of the lowest score stays.

    Raises:
        ValueError: a ratio lies outside of [0, 1], ``high_random`` is 0, or there is no instance.
    """
    ratios = {"high_ratio": high_ratio, "low_ratio": low_ratio, "random_ratio": random_ratio}
    for name, value in (ratios | {"high_random": high_random}).items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if high_random == 0.0:
        raise ValueError("high_random must be above 0")
    if scores.ndim not in (2, 3) or scores.shape[-1] == 0:
        raise ValueError(f"scores must be [B, N] or [B, H, N] with an instance or more, got {tuple(scores.shape)}")
    size = scores.shape[-1]
    here = mask if mask is not None else torch.ones(len(scores), size, dtype=torch.bool, device=scores.device)
    count = here.sum(-1).double()  # [B]
    pool_ratio = high_ratio / high_random
    if pool_ratio > 1.0:
        pool_ratio, high_random = 1.0, high_ratio
    num_high = (count * pool_ratio).ceil()
    removed = smallest(-scores, here, num_high)
    if high_random < 1.0:
        removed = smallest(uniform(keys, size, stream=_HIGH), removed, (num_high * high_random).ceil())
    if low_ratio > 0.0:
        removed = removed | smallest(scores, here, (count * low_ratio).ceil())
    if random_ratio > 0.0:
        removed = removed | smallest(uniform(keys, size, stream=_RANDOM), here, (count * random_ratio).ceil())
    kept = here & ~removed
    lowest = smallest(scores, here, torch.ones_like(count))
    return kept | (lowest & ~kept.any(-1, keepdim=True))


def hard_instance_keep(
    scores: Tensor,
    *,
    high_ratio: float,
    low_ratio: float = 0.0,
    random_ratio: float = 0.0,
    high_random: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Positions of the instances of one bag that stay, int64, ascending.

    Args:
        scores: ``[N]``, or ``[H, N]`` of several heads.
        high_ratio: as in `hard_instance_mask`.
        low_ratio: as in `hard_instance_mask`.
        random_ratio: as in `hard_instance_mask`.
        high_random: as in `hard_instance_mask`.
        generator: of the draws, on the device of the scores.
    """
    mask = hard_instance_mask(
        scores.unsqueeze(0),
        keys=torch.randint(2**62, (1,), generator=generator, device=scores.device),
        high_ratio=high_ratio,
        low_ratio=low_ratio,
        random_ratio=random_ratio,
        high_random=high_random,
    )
    return mask[0].nonzero().squeeze(-1)
