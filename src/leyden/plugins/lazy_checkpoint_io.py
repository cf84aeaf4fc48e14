"""DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models, Maurya et al., 2024, arXiv 2406.10707.

Weights and optimizer states do not change between two optimizer steps: they are copied to the host while the next
forward and backward pass run, and written to the disk behind that.
"""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from torch import Tensor

from leyden.plugins._snapshot import HostPool, Snapshot
from leyden.plugins.checkpoint_io import AtomicCheckpointIO

__all__ = ["LazyAsyncCheckpointIO"]


class LazyAsyncCheckpointIO(AtomicCheckpointIO):
    """Writes checkpoints in the background, each as a whole: the same files as `AtomicCheckpointIO`, a little later.

    `save_checkpoint` returns when a copy is made. With `leyden.callbacks.LazyCheckpointing`, weights and optimizer
    states are copied after it has returned, while training goes on. An old checkpoint is removed when those saved
    before its removal have appeared. What goes wrong in the background is raised by the next call.

    The memory of the copies is used again, and freed at the end of a fit: as much as a checkpoint is large, times
    ``max_pending``.

    Args:
        pinned_bytes: how much of it may be page-locked, so that an accelerator copies while it computes; None sets no
            limit.
        max_pending: checkpoints that may be on their way; a further one waits for the oldest.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, pinned_bytes: int | None = None, max_pending: int = 1) -> None:
        if pinned_bytes is not None and pinned_bytes < 0:
            raise ValueError(f"pinned_bytes must be at least 0, or None for no limit, got {pinned_bytes}")
        if max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, got {max_pending}")
        self.max_pending = max_pending
        self._pool = HostPool(pinned_bytes)
        self._unchanging: list[Tensor] = []
        self._unfinished: tuple[Snapshot, Path] | None = None
        self._pending: dict[Future, Path | None] = {}  # saves and removals (None), in their order
        self._copier: ThreadPoolExecutor | None = None
        self._writer: ThreadPoolExecutor | None = None

    def copy_later(self, tensors: Iterable[Tensor]) -> None:
        """Promises that tensors of the next checkpoint stay as they are until `wait_for_snapshot` has returned."""
        self._unchanging = list(tensors)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Copies a checkpoint, or begins to, and lets it be written.

        Args:
            checkpoint: tensors and plain values.
            path: the file.
            storage_options: must be None.

        Raises:
            OSError: an earlier file could not be written.
            TypeError: there are ``storage_options``.
        """
        unchanging, self._unchanging = self._unchanging, []
        if storage_options is not None:
            raise TypeError(f"storage_options must be None: LazyAsyncCheckpointIO has none, got {storage_options!r}")
        self.wait_for_snapshot()
        while len(saves := [future for future, path in self._pending.items() if path]) >= self.max_pending:
            wait(saves[:1])
            self._raise_error()
        self._copier = self._copier or ThreadPoolExecutor(1, "copy-checkpoint")
        self._unfinished = Snapshot(checkpoint, unchanging, self._pool, self._copier), Path(path)
        if not unchanging:
            self.wait_for_snapshot()

    def wait_for_snapshot(self) -> None:
        """Returns when all tensors may change again.

        Raises:
            OSError: a file could not be written.
            RuntimeError: a tensor has changed against the promise; the checkpoint is dropped.
        """
        if self._unfinished is not None:
            (snapshot, path), self._unfinished = self._unfinished, None
            try:
                snapshot.finish()
            except RuntimeError:
                snapshot.release()
                raise
            self._writer = self._writer or ThreadPoolExecutor(1, "write-checkpoint")
            self._pending[self._writer.submit(self._write, snapshot, path)] = path
        self._raise_error()

    def wait(self) -> None:
        """Returns when all checkpoints are published.

        Raises:
            OSError: a file could not be written.
            RuntimeError: a tensor has changed against the promise; the checkpoint is dropped.
        """
        self.wait_for_snapshot()
        wait(self._pending)
        self._raise_error()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a checkpoint when those on their way are published; see `AtomicCheckpointIO.load_checkpoint`."""
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint, if it is there, when those saved before are published."""
        self.wait_for_snapshot()
        if self._writer is None:
            super().remove_checkpoint(path)
        else:
            before = [future for future, path in self._pending.items() if path]
            self._pending[self._writer.submit(self._remove, path, before)] = None

    def teardown(self) -> None:
        """Publishes what is on its way, ends the threads and frees the copies.

        Raises:
            OSError: a file could not be written.
            RuntimeError: a tensor has changed against the promise; the checkpoint is dropped.
        """
        try:
            self.wait()
        finally:
            for worker in (self._copier, self._writer):
                if worker is not None:
                    worker.shutdown()
            self._copier = self._writer = None
            self._pool.clear()

    def _write(self, snapshot: Snapshot, path: Path) -> None:
        try:
            super().save_checkpoint(snapshot.restore(), path)
        finally:
            snapshot.release()

    def _remove(self, path: str | os.PathLike[str], before: list[Future]) -> None:
        if all(save.exception() is None for save in before):  # else the old one may be the only one
            super().remove_checkpoint(path)

    def _raise_error(self) -> None:
        done = [future for future in self._pending if future.done()]
        for future in done:
            del self._pending[future]
        for future in done:
            future.result()
