"""The order of the training samples, and how a global batch is cut into micro-batches and shares of processes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["GlobalBatchSampler", "Order", "Sequential", "Shuffled", "Weighted", "eval_batches"]


class Order(ABC):
    """In which order, and how often, an epoch visits the samples.

    An order that is no pure function of its arguments (say, one that reads the losses of the last epoch) sets ``pure``
    to False: a checkpoint then has the indices of the running epoch. What it reads is saved by whoever owns it. One
    that draws the same random numbers in several epochs, one after another, sets ``period`` to their number.
    """

    pure: bool = True
    period: int = 1

    @abstractmethod
    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns int64 positions in ``[0, num_samples)``, of any length; random only through ``generator``."""


class Shuffled(Order):
    """Every sample once, in a new random order each epoch."""

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns a permutation."""
        return torch.randperm(num_samples, generator=generator)


class Sequential(Order):
    """Every sample once, in the order of the data set."""

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns 0, 1, 2, ..."""
        return torch.arange(num_samples)


class Weighted(Order):
    """As many draws as there are samples, with replacement.

    Args:
        weights: one non-negative number per sample, in proportion to how often it is drawn.
    """

    def __init__(self, weights: list[float] | Tensor) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)

    def __call__(self, num_samples: int, epoch: int, generator: torch.Generator) -> Tensor:
        """Returns the draws; raises `ValueError` if the number of weights is not that of the samples."""
        if len(self.weights) != num_samples:
            raise ValueError(f"weights has {len(self.weights)} entries, but there are {num_samples} training samples")
        return torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)


class GlobalBatchSampler:
    """Hands each process its share of every global batch; can be cut anywhere, resized between steps and resumed.

    The order of an epoch is a pure function of (seed, epoch), the position a count of global samples. One optimizer
    step takes the next ``batch_size`` samples of the order, whatever the number of processes and accumulated batches:
    micro-batch ``m`` of process ``r`` is one of ``accumulate * num_replicas`` equal, consecutive pieces. So 1, 2 or 4
    processes see the same samples in the same step, and a run can be resumed on another number of them.

    Iterating plans ahead from the current position and changes nothing; the loader calls `advance` for every batch that
    it hands out, so batches that were only prefetched do not count.

    Args:
        num_samples: size of the training set.
        batch_size: samples of one optimizer step, over all processes and micro-batches. Settable: a new size holds from
            the next optimizer step on.
        order: an `Order`; shuffled if None.
        drop_last: leave out the last, smaller batch of an epoch.
        seed: seed of the order.
        num_replicas: number of processes that share a batch.
        rank: number of this process.
        accumulate: micro-batches per optimizer step.

    Raises:
        ValueError: ``batch_size`` is below 1, above ``num_samples`` (with ``drop_last``), or cannot be shared equally;
            or, when an epoch begins, it does not fit the number of samples that ``order`` has in it.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        order: Order | None = None,
        drop_last: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        accumulate: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.order = order or Shuffled()
        self.drop_last = drop_last
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.accumulate = accumulate
        self._check(batch_size, accumulate)
        self._first_batch_size = self._batch_size = self._next_batch_size = batch_size
        self.epoch = 0
        self.version = 0  # grows when what was planned so far no longer holds
        self._indices: Tensor | None = None
        self._resumed: dict[str, Any] | None = None
        self._cursor = self._micro = self._handed_out = 0

    @property
    def batch_size(self) -> int:
        """Samples of the current optimizer step, over all processes and micro-batches."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self.resize(batch_size)

    def resize(self, batch_size: int, accumulate: int | None = None) -> None:
        """Changes the size from the next optimizer step on, and the number of micro-batches that share it.

        Args:
            batch_size: samples of an optimizer step.
            accumulate: micro-batches per optimizer step; as many as before if None. Those handed out so far are then
                counted as if the epoch had begun so. It cannot change within a step.

        Raises:
            ValueError: the size is out of range or cannot be shared equally, or a step has begun.
        """
        accumulate = self.accumulate if accumulate is None else accumulate
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate}")
        self._check(batch_size, accumulate)
        if accumulate != self.accumulate:
            if self._micro:
                raise ValueError("accumulate can only change between two optimizer steps, but one has begun")
            self._handed_out = self._handed_out // self.accumulate * accumulate
            self.accumulate = accumulate
            self.version += 1
        self._next_batch_size = batch_size
        if self._micro == 0:
            self._resize()

    def __len__(self) -> int:
        """Micro-batches of this epoch for one process: those handed out and those to come at the present size."""
        size, begun = self._next_batch_size, 1 if self._micro else 0
        remaining = len(self._epoch_indices()) - self._cursor - begun * self._batch_size
        steps = begun + max(0, remaining if self.drop_last else remaining + size - 1) // size
        return self._handed_out + steps * self.accumulate - self._micro

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Plans the rest of the epoch: for each micro-batch a seed and this process's sample numbers."""
        indices, pieces = self._epoch_indices(), self.accumulate * self.num_replicas
        cursor, step, micro = self._cursor, self._handed_out // self.accumulate, self._micro
        while (left := len(indices) - cursor) >= (size := self._step_size(step)) or (left > 0 and not self.drop_last):
            total = min(size, left)
            for piece in range(micro * self.num_replicas + self.rank, pieces, self.num_replicas):
                start, stop = cursor + total * piece // pieces, cursor + total * (piece + 1) // pieces
                seed = np.random.SeedSequence([self.seed, self.epoch, start]).generate_state(1)
                yield int(seed[0]), indices[start:stop].tolist()
            cursor, step, micro = cursor + total, step + 1, 0

    def begin(self) -> None:
        """Starts the epoch from its first sample, or from where a loaded state stopped."""
        if self._resumed is None:
            self._rewind()
            return
        state, self._resumed = self._resumed, None
        for name, here in (("num_samples", self.num_samples), ("seed", self.seed)):
            if state[name] != here and 0 < self._cursor < len(self._epoch_indices()):
                raise ValueError(
                    f"cannot resume within an epoch: the order of the samples was made with {name}={state[name]} "
                    f"and is now asked for with {name}={here}"
                )

    def advance(self) -> None:
        """Counts one more micro-batch as handed out."""
        self._micro += 1
        self._handed_out += 1
        if self._micro == self.accumulate:
            size = self._step_size(self._handed_out // self.accumulate - 1)
            self._cursor = min(self._cursor + size, len(self._epoch_indices()))
            self._micro = 0
            self._resize()

    @property
    def exhausted(self) -> bool:
        """Whether the epoch has no batch left."""
        return self._handed_out >= len(self)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order is used; another epoch than the present one starts at its first sample."""
        if epoch != self.epoch:
            self.epoch, self._indices, self._resumed = epoch, None, None
            self._rewind()

    def state_dict(self) -> dict[str, Any]:
        """Position and size; with an order that is not pure, also the indices of this epoch."""
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "cursor": self._cursor,
            "micro": self._micro,
            "handed_out": self._handed_out,
            "accumulate": self.accumulate,
            "batch_size": self._batch_size,
            "next_batch_size": self._next_batch_size,
            "first_batch_size": self._first_batch_size,
            "num_samples": self.num_samples,
            "seed": self.seed,
        }
        if not self.order.pure:
            state["indices"] = self._epoch_indices()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position, also with other numbers of processes and micro-batches.

        A batch size given to the constructor that differs from the first one of the saved run wins over the saved size.
        """
        if state["micro"] and state["accumulate"] != self.accumulate:
            raise ValueError(
                f"cannot resume in the middle of an accumulated step with accumulate={self.accumulate}: "
                f"it was begun with accumulate={state['accumulate']}"
            )
        self.epoch, self._cursor, self._micro = state["epoch"], state["cursor"], state["micro"]
        self._handed_out = state["handed_out"] * self.accumulate // state["accumulate"]
        if state["first_batch_size"] == self._first_batch_size:
            self._check(state["next_batch_size"], self.accumulate)
            self._next_batch_size = state["next_batch_size"]
        self._batch_size = state["batch_size"] if self._micro else self._next_batch_size  # a step begun is ended
        self._indices = state.get("indices")
        self._resumed = state
        self.version += 1

    def _rewind(self) -> None:
        self._cursor = self._micro = self._handed_out = 0

    def _step_size(self, step: int) -> int:
        """Samples of an optimizer step, by its number in the epoch."""
        return self._batch_size

    def _resize(self) -> None:
        if self._next_batch_size != self._batch_size:
            self._batch_size = self._next_batch_size
            self.version += 1

    def _check(self, batch_size: int, accumulate: int) -> None:
        pieces = self.num_replicas * accumulate
        if batch_size < 1 or (self.drop_last and batch_size > self.num_samples):
            raise ValueError(f"batch_size must lie in 1..{self.num_samples} (the training samples), got {batch_size}")
        tail = 0 if self.drop_last else self.num_samples % batch_size
        if batch_size % pieces or tail % pieces:
            part = f"the last batch of {tail} samples" if batch_size % pieces == 0 else f"batch_size={batch_size}"
            raise ValueError(
                f"{part} cannot be shared equally by {self.num_replicas} processes x {accumulate} accumulated "
                f"micro-batches: batch_size counts the samples of one optimizer step and must be a multiple of {pieces}"
                + ("" if self.drop_last else " (or set drop_last=True)")
            )

    def _epoch_indices(self) -> Tensor:
        if self._indices is None:
            block = self.epoch // self.order.period
            seed = np.random.SeedSequence([self.seed, block]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(seed))
            self._indices = self.order(self.num_samples, self.epoch, generator)
            self._check_order(len(self._indices))
        return self._indices

    def _check_order(self, count: int) -> None:
        """Checks the length of an epoch, which need not be that of the training set."""
        name = f"the {count} samples that {type(self.order).__name__} has in epoch {self.epoch}"
        if self.drop_last and count < self._next_batch_size:
            raise ValueError(f"batch_size must be at most {name}, got {self._next_batch_size}")
        if not self.drop_last and count % (self.num_replicas * self.accumulate):
            raise ValueError(
                f"{name} cannot be shared equally by {self.num_replicas} processes x {self.accumulate} accumulated "
                "micro-batches: set drop_last=True"
            )


def eval_batches(num_samples: int, batch_size: int, num_replicas: int = 1, rank: int = 0) -> list[list[int]]:
    """Cuts a data set into batches such that every sample is seen exactly once over all processes.

    All processes get the same number of batches (so that collective operations match), of nearly equal size.

    Args:
        num_samples: size of the data set.
        batch_size: the largest batch, over all processes; a process gets up to a share of it.
        num_replicas: number of processes.
        rank: number of this process.

    Raises:
        ValueError: fewer samples than processes.
    """
    if num_samples < num_replicas:
        raise ValueError(f"{num_samples} samples cannot be shared by {num_replicas} processes")
    pieces = num_replicas * min(-(-num_samples // batch_size), num_samples // num_replicas)
    bounds = [num_samples * piece // pieces for piece in range(pieces + 1)]
    return [list(range(bounds[piece], bounds[piece + 1])) for piece in range(rank, pieces, num_replicas)]
