"""How sharp the loss of a batch is (D. Granziol, S. Zohren, S. Roberts, "Learning Rates as a Function of Batch Size: A
Random Matrix Theory Approach to Neural Network Training", 2022, arXiv 2006.09092)."""

import math

__all__ = ["batch_hessian_extreme"]


def batch_hessian_extreme(
    eigenvalue: float, sigma: float, num_params: int, batch_size: int, *, dataset_size: int | None = None
) -> float:
    """Largest eigenvalue of the Hessian of a batch: that of the whole data set, and noise.

    With ``r = sigma * sqrt(P / b)`` and ``b = B / (1 - B / N)`` it is ``eigenvalue + r^2 / eigenvalue`` for eigenvalues
    above r, else the edge of the noise, 2 r. SGD is stable up to a learning rate of two over it: which grows with B
    where the first form is mostly noise, with the root of B at the edge, and not at all without noise.

    Args:
        eigenvalue: largest one of the whole data set's Hessian, at least 0.
        sigma: standard deviation of the entries of a single sample's Hessian about their mean.
        num_params: P.
        batch_size: B.
        dataset_size: N, from which batches are drawn without replacement; infinite if None.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value in (("eigenvalue", eigenvalue), ("sigma", sigma)):
        if not value >= 0.0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if num_params < 1:
        raise ValueError(f"num_params must be at least 1, got {num_params}")
    if batch_size < 1 or (dataset_size is not None and batch_size > dataset_size):
        limit = "" if dataset_size is None else f" and at most dataset_size, {dataset_size}"
        raise ValueError(f"batch_size must be at least 1{limit}, got {batch_size}")
    share = 0.0 if dataset_size is None else batch_size / dataset_size
    noise = sigma * math.sqrt(num_params * (1.0 - share) / batch_size)
    return eigenvalue + noise**2 / eigenvalue if eigenvalue > noise else 2.0 * noise
