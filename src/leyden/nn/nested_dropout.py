"""Nested dropout (O. Rippel, M. Gelbart, R. Adams, "Learning Ordered Representations with Nested Dropout", 2014) as in
Y. Chen, S. X. Hu, X. Shen, C. Ai, J. A. K. Suykens, "Compressing Features for Learning with Noisy Labels", 2022
(authors' code: yingyichen-cyy/Nested-Co-teaching)."""

import torch
from torch import Tensor, nn

from leyden.core.random import sample_keys, uniform

__all__ = ["NestedDropout", "nested_dropout_distribution", "truncate_features"]


def nested_dropout_distribution(num_features: int, *, sigma: float, mu: float = 0.0) -> Tensor:
    """How likely k features are kept: in proportion to ``exp(-((k - mu) / sigma)^2)`` for k = 1 .. D.

    Args:
        num_features: D.
        sigma: width; the authors take 10 for CIFAR-10 and 100 for CIFAR-100, of 512 features.
        mu: the most likely number.

    Returns:
        float64 ``[D]``, whose entry k - 1 is the probability of k.

    Raises:
        ValueError: there is no feature, or ``sigma`` is not positive.
    """
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if not sigma > 0.0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    k = torch.arange(1, num_features + 1, dtype=torch.float64)
    return (-(((k - mu) / sigma) ** 2)).softmax(0)


def truncate_features(x: Tensor, keep: int | Tensor) -> Tensor:
    """Sets all features but the first ones to 0; what is kept is not rescaled.

    Args:
        x: features ``[..., D]``.
        keep: how many are kept, a number or an integer scalar on the device of ``x``.
    """
    return x * (torch.arange(x.shape[-1], device=x.device) < keep)


class NestedDropout(nn.Module):
    """Keeps the first k features of all samples of a batch, k drawn anew in each forward pass of training.

    The draws are a function of the buffer ``key``, which counts them: a resumed run goes on with them, and all
    processes make the same.

    Args:
        num_features: D.
        sigma: as in `nested_dropout_distribution`, like ``mu``.
        mu: the most likely number of features.
        keep: how many features are kept in evaluation; all if None. Those that training hardly ever kept are noise: the
            authors choose the number by validation accuracy, and for a ``sigma`` of 10 it was 8 to 16.

    Raises:
        ValueError: an argument is out of range.
    """

    prob: Tensor
    key: Tensor

    def __init__(self, num_features: int, *, sigma: float, mu: float = 0.0, keep: int | None = None) -> None:
        super().__init__()
        if keep is not None and not 1 <= keep <= num_features:
            raise ValueError(f"keep must lie in 1..{num_features} (the features), got {keep}")
        self.keep = keep
        prob = nested_dropout_distribution(num_features, sigma=sigma, mu=mu).float()  # [D]
        self.register_buffer("prob", prob, persistent=False)  # a run resumed with another sigma takes the new one
        self.register_buffer("key", torch.randint(2**62, (1,)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps features ``[..., D]`` to features."""
        if not self.training:
            return x if self.keep is None else truncate_features(x, self.keep)
        draw = uniform(sample_keys(0, 0, self.key))  # [1]
        self.key += 1
        cumulative = self.prob.float().cumsum(0)  # [D]
        return truncate_features(x, 1 + (cumulative[:-1] <= draw * cumulative[-1]).sum())
