"""Learning rate of another batch size: linear for SGD (P. Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv
1706.02677, section 2.1), or by the square root (E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better",
2017, arXiv 1705.08741: equal covariance of the weight increments)."""

__all__ = ["scale_lr"]


def scale_lr(lr: float, batch_size: int, base_batch_size: int, *, rule: str = "linear") -> float:
    """Returns ``lr * B / B0``, or ``lr * sqrt(B / B0)``.

    Args:
        lr: learning rate for the batch size B0.
        batch_size: B, in samples of one optimizer step.
        base_batch_size: B0.
        rule: ``"linear"`` or ``"sqrt"``.

    Raises:
        ValueError: another rule, or a size below 1.
    """
    if rule not in ("linear", "sqrt"):
        raise ValueError(f"rule must be 'linear' or 'sqrt', got {rule!r}")
    for name, size in (("batch_size", batch_size), ("base_batch_size", base_batch_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    ratio = batch_size / base_batch_size
    return lr * (ratio if rule == "linear" else ratio**0.5)
