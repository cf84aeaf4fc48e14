"""Range checks of the sizes and rates that the networks share."""

__all__ = ["check_dropout", "check_positive"]


def check_positive(**sizes: int) -> None:
    """Refuses a size below 1, by the name under which it is passed."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")


def check_dropout(dropout: float) -> None:
    """Refuses a dropout rate outside [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
