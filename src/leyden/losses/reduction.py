"""From one loss per example to the loss of a batch."""

from torch import Tensor

__all__ = ["reduce_loss"]


def reduce_loss(values: Tensor, reduction: str) -> Tensor:
    """Reduces losses as `torch.nn.functional` does.

    Args:
        values: one loss per example, ``[N]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (gives ``values``).

    Raises:
        ValueError: another ``reduction``.
    """
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
