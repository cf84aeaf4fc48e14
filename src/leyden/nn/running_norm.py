"""Normalisation of a stream, one sample at a time (M. Elsayed, G. Vasan, A. R. Mahmood, "Streaming Deep Reinforcement
Learning Finally Works", 2024, arXiv 2410.14606, algorithms 4 to 6; the running moments are B. P. Welford's, 1962).

Original code: mohmdelsayed/streaming-drl, ``normalization_wrappers.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["RewardScale", "RunningNorm"]


class RunningNorm(nn.Module):
    """Subtracts the mean of all samples so far and divides by their standard deviation.

    In training mode a sample is first counted, then normalised; several rows are taken one after the other. In
    evaluation mode the statistics stand still. They are float64 buffers.

    Args:
        shape: shape of a sample; an int for ``[D]``.
        eps: is added to the variance.

    Raises:
        ValueError: ``eps`` is negative.
    """

    mean: Tensor
    sum_sq: Tensor
    num_samples: Tensor

    def __init__(self, shape: int | Sequence[int], *, eps: float = 1e-8) -> None:
        super().__init__()
        if not eps >= 0.0:
            raise ValueError(f"eps must be at least 0, got {eps}")
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.register_buffer("mean", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("sum_sq", torch.zeros(self.shape, dtype=torch.float64))  # of the distances from the mean
        self.register_buffer("num_samples", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Counts (in training mode) and normalises.

        Args:
            x: one sample or rows of them, ``[..., *shape]``.

        Returns:
            Of the shape and dtype of ``x``.

        Raises:
            ValueError: ``x`` does not end in ``shape``.
        """
        if x.shape[x.ndim - len(self.shape) :] != self.shape:
            raise ValueError(f"x must have the shape [..., {self.shape}], got {tuple(x.shape)}")
        if not self.training:
            return self.normalize(x)
        rows = []
        for row in x.reshape(-1, *self.shape):
            self._count(row)
            rows.append(self.normalize(row))
        return torch.stack(rows).view(x.shape) if rows else x

    def normalize(self, x: Tensor) -> Tensor:
        """Normalises with the statistics as they are; shapes as in `forward`."""
        return ((x - self.mean) / (self.variance() + self.eps).sqrt()).to(x.dtype)

    def variance(self) -> Tensor:
        """Of the samples so far (the unbiased estimate), 1 for fewer than 2; float64 ``[*shape]``."""
        return torch.where(self.num_samples < 2, 1.0, self.sum_sq / (self.num_samples - 1).clamp(min=1))

    @torch.no_grad()
    def _count(self, row: Tensor) -> None:
        self.num_samples += 1
        distance = row - self.mean
        self.mean += distance / self.num_samples
        self.sum_sq += distance * (row - self.mean)


class RewardScale(nn.Module):
    """Divides rewards by the standard deviation of their discounted sum.

    ``trace <- gamma * trace * (1 - terminated) + reward`` is counted as `RunningNorm` counts, then the reward is
    divided by the root of its variance; it is not centred. In evaluation mode nothing is counted.

    Args:
        gamma: discount of the sum.
        eps: is added to the variance.

    Raises:
        ValueError: an argument is out of range.
    """

    trace: Tensor

    def __init__(self, *, gamma: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__()
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        self.gamma = gamma
        self.stats = RunningNorm((), eps=eps)
        self.register_buffer("trace", torch.zeros((), dtype=torch.float64))

    def forward(self, reward: Tensor, terminated: Tensor) -> Tensor:
        """Counts (in training mode) and scales.

        Args:
            reward: one reward or several that follow each other, ``[]`` or ``[N]``.
            terminated: whether the episode ended with it, also by a limit of time; bool, of the same shape.

        Returns:
            Of the shape and dtype of ``reward``.

        Raises:
            ValueError: the shapes differ, or have more than one dimension.
        """
        if reward.shape != terminated.shape or reward.ndim > 1:
            raise ValueError(
                "reward and terminated must have one shape, [] or [N], "
                f"got {tuple(reward.shape)} and {tuple(terminated.shape)}"
            )
        if not self.training:
            return (reward / self.std()).to(reward.dtype)
        scaled = []
        for one, ended in zip(reward.reshape(-1), terminated.reshape(-1), strict=True):
            self.trace.mul_(self.gamma * (1.0 - ended.to(self.trace))).add_(one)
            self.stats._count(self.trace)
            scaled.append(one / self.std())
        return torch.stack(scaled).view(reward.shape).to(reward.dtype) if scaled else reward

    def std(self) -> Tensor:
        """What rewards are divided by, float64 ``[]``."""
        return (self.stats.variance() + self.stats.eps).sqrt()
