"""Whether more of a metric is better."""

__all__ = ["default_mode"]

LESS_IS_BETTER = ("loss", "error", "mse", "mae", "rmse", "bits", "perplexity", "distance")


def default_mode(metric: str) -> str:
    """``"min"`` for a loss or an error by its name, else ``"max"``."""
    return "min" if any(word in metric.rsplit("/", 1)[-1].lower() for word in LESS_IS_BETTER) else "max"
