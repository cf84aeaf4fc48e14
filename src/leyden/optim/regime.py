"""A small batch's regime for a large batch (E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better: closing
the generalization gap in large batch training of neural networks", 2017, arXiv 1705.08741, sections 4 and 5)."""

from collections.abc import Sequence

__all__ = ["adapt_regime"]


def adapt_regime(milestones: Sequence[int], batch_size: int, base_batch_size: int) -> list[int]:
    """Stretches epochs so that there are as many updates as with the small batch: ``e * ceil(B / B0)``.

    Args:
        milestones: epochs at which the learning rate changes, and the number of epochs, as chosen for the small batch.
        batch_size: B, the large batch.
        base_batch_size: B0, the small batch.

    Raises:
        ValueError: a size is below 1, or a milestone is negative.
    """
    for name, size in (("batch_size", batch_size), ("base_batch_size", base_batch_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if min(milestones, default=0) < 0:
        raise ValueError(f"milestones must be epochs from 0 on, got {list(milestones)}")
    return [epoch * -(-batch_size // base_batch_size) for epoch in milestones]
