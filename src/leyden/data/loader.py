"""Loaders of batches by sample number."""

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from leyden.core.batch import Batch
from leyden.data.sampler import GlobalBatchSampler

__all__ = ["EvalLoader", "ResumableLoader"]


class _Fetch(Dataset):
    """Turns (seed, sample numbers) into a batch with its ``index``."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, request: tuple[int, list[int]]) -> Batch:
        seed, indices = request
        if get_worker_info() is not None:
            # A data set may draw from the global generators, whose state in a worker depends on what was prefetched.
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` asks all devices, and takes 0.1 ms
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
        if hasattr(self.dataset, "__getitems__"):
            batch = self.dataset.__getitems__(indices)
        else:
            batch = default_collate([self.dataset[i] for i in indices])
        return {**batch, "index": np.array(indices, dtype=np.int64)}  # a tensor would come through a file of its own


def _ignore_signals(worker: int) -> None:
    """SLURM sends its signals to all processes of a job step: the one that trains says what is done about them."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if "SLURM_JOB_ID" in os.environ:  # elsewhere a worker that hangs is ended by SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch


class _Loader:
    """A torch `DataLoader` over (seed, sample numbers), not of its type: Lightning would put another sampler in."""

    def __init__(self, dataset: Dataset, requests: Iterable[tuple[int, list[int]]], num_workers: int) -> None:
        self.dataset = dataset
        self._loader = DataLoader(
            _Fetch(dataset),
            batch_sampler=requests,  # type: ignore[arg-type]
            collate_fn=_as_is,
            worker_init_fn=_ignore_signals,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # making an iterator must draw nothing from the global generator
        )

    def _batches(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield batch | {"index": torch.from_numpy(batch["index"])}

    @property
    def _iterator(self) -> Any:
        """Where Lightning finds the loading processes that it ends after a fit."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator


class EvalLoader(_Loader):
    """Iterates over fixed batches.

    Args:
        dataset: map-style; its samples are dicts of tensors, or it has ``__getitems__``, which returns whole batches.
        batches: lists of sample numbers, such as `eval_batches` makes.
        num_workers: number of loading processes.
    """

    def __init__(self, dataset: Dataset, batches: list[list[int]], *, num_workers: int = 0) -> None:
        super().__init__(dataset, list(enumerate(batches)), num_workers)
        self.batches = batches

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches."""
        return self._batches()


class ResumableLoader(_Loader):
    """Iterates over the rest of an epoch; its state is the position among the batches that were handed out.

    Lightning saves and restores the state with its checkpoints, and calls ``sampler.set_epoch``. After a change of the
    batch size, batches that workers had already prefetched at the old size are dropped and loaded again.

    Args:
        dataset: as in `EvalLoader`.
        sampler: says which samples make the next batch.
        num_workers: number of loading processes.
        on_epoch_start: called when an epoch starts, and when a state was loaded: its length is known now.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: GlobalBatchSampler,
        *,
        num_workers: int = 0,
        on_epoch_start: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(dataset, sampler, num_workers)
        self.sampler = sampler
        self.on_epoch_start = on_epoch_start

    def __len__(self) -> int:
        """Number of batches in this epoch, those that were handed out included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches; being a generator, it reads the epoch at the first batch: after ``set_epoch``."""
        self.sampler.begin()
        if self.on_epoch_start is not None:
            self.on_epoch_start()
        while not self.sampler.exhausted:
            version = self.sampler.version
            for batch in self._batches():
                self.sampler.advance()
                yield batch
                if self.sampler.version != version:
                    break

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of the sampler."""
        self.sampler.load_state_dict(state)
        if self.on_epoch_start is not None:
            self.on_epoch_start()
