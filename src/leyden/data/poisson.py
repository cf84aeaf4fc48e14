"""Batches in which every sample takes part on its own, as differential privacy needs them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from leyden.data.sampler import GlobalBatchSampler

__all__ = ["PoissonBatchSampler"]


class PoissonBatchSampler(GlobalBatchSampler):
    """Draws each optimizer step anew: every sample with probability ``batch_size / num_samples``, on its own.

    A step has ``batch_size`` samples on average, now more and now fewer, and an epoch ``num_samples // batch_size``
    steps, in which a sample may come several times or not at all. The draw of a step is a pure function of (seed,
    epoch, step); it is shared by processes and micro-batches, in nearly equal parts, as `GlobalBatchSampler` shares a
    batch. The size is fixed.

    Args:
        num_samples: size of the training set.
        batch_size: mean size of a step's batch, over all processes and micro-batches.
        **kwargs: as in `GlobalBatchSampler`; there is no ``order`` and ``drop_last`` has no effect.

    Raises:
        ValueError: an ``order`` is given, or ``batch_size`` is out of range or cannot be shared equally.
    """

    def __init__(self, num_samples: int, batch_size: int, **kwargs: Any) -> None:
        if kwargs.get("order") is not None:
            raise ValueError("order: the batches of Poisson sampling are drawn anew in each step and have no order")
        super().__init__(num_samples, batch_size, **kwargs)
        if batch_size > num_samples:
            raise ValueError(f"batch_size must lie in 1..{num_samples} (the training samples), got {batch_size}")

    @property
    def sample_rate(self) -> float:
        """Probability that a sample is in a step."""
        return self._batch_size / self.num_samples

    def resize(self, batch_size: int, accumulate: int | None = None) -> None:
        """Raises `ValueError`."""
        raise ValueError("the batch size of Poisson sampling is fixed: the privacy that it gives depends on it")

    def __len__(self) -> int:
        """Micro-batches of an epoch for one process."""
        return self.num_samples // self._batch_size * self.accumulate

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Plans the rest of the epoch: for each micro-batch a seed and this process's sample numbers, maybe none."""
        pieces, first = self.accumulate * self.num_replicas, self._micro
        for step in range(self._cursor, self.num_samples // self._batch_size):
            indices = self._draw(step)
            for piece in range(first * self.num_replicas + self.rank, pieces, self.num_replicas):
                start, stop = len(indices) * piece // pieces, len(indices) * (piece + 1) // pieces
                seed = np.random.SeedSequence([self.seed, self.epoch, step, piece]).generate_state(1)
                yield int(seed[0]), indices[start:stop]
            first = 0

    def advance(self) -> None:
        """Counts one more micro-batch as handed out."""
        self._micro += 1
        self._handed_out += 1
        if self._micro == self.accumulate:
            self._cursor += 1  # a step, not a sample
            self._micro = 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position, also with other numbers of processes and micro-batches.

        Raises:
            ValueError: the batch size was another.
        """
        if state["batch_size"] != self._batch_size:
            raise ValueError(
                f"cannot resume Poisson sampling with batch_size={self._batch_size}: the run was begun with "
                f"{state['batch_size']}, on which its privacy depends"
            )
        super().load_state_dict(state)

    def _draw(self, step: int) -> list[int]:
        seed = np.random.SeedSequence([self.seed, self.epoch, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed))
        taken = torch.rand(self.num_samples, generator=generator, dtype=torch.float64) < self.sample_rate
        return taken.nonzero().flatten().tolist()
