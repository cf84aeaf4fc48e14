"""A copy of a checkpoint in host memory."""

import io
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HostPool", "Snapshot"]

PLAIN = (Tensor, nn.Parameter)  # other classes pickle themselves


class HostPool:
    """Host memory that is used again: the checkpoints of a run have the same sizes.

    Args:
        pinned_bytes: how much of it may be page-locked; None sets no limit.
    """

    def __init__(self, pinned_bytes: int | None = None) -> None:
        self.pinned_bytes = pinned_bytes
        self._pinned = 0
        self._free: dict[tuple[int, bool], list[Tensor]] = {}

    def take(self, size: int, *, pinned: bool) -> Tensor:
        """Returns ``size`` bytes, page-locked if wished and allowed."""
        lock = pinned and (self.pinned_bytes is None or self._pinned + size <= self.pinned_bytes)
        for kind in {pinned, lock}:
            if self._free.get((size, kind)):
                return self._free[size, kind].pop()
        self._pinned += size * lock
        return torch.empty(size, dtype=torch.uint8, pin_memory=lock)

    def give_back(self, memory: Tensor) -> None:
        """Takes back what `take` gave."""
        pinned = torch.cuda.is_available() and memory.is_pinned()
        self._free.setdefault((len(memory), pinned), []).append(memory)

    def clear(self) -> None:
        """Frees what is not in use."""
        self._pinned -= sum(size * len(free) for (size, pinned), free in self._free.items() if pinned)
        self._free.clear()


class Snapshot:
    """What is no tensor as bytes, and a copy of every storage: tensors that share one go on sharing it.

    Args:
        checkpoint: tensors and plain values.
        unchanging: tensors of which the copies need not be complete before `finish`.
        pool: where the host memory comes from.
        copier: copies these tensors, if they are on the host.
    """

    def __init__(
        self, checkpoint: dict[str, Any], unchanging: Iterable[Tensor], pool: HostPool, copier: Executor
    ) -> None:
        self._pool = pool
        self._plain, self._tensors = _pickled(checkpoint)
        self._loose = {id(tensor): tensor.detach().cpu().clone() for tensor in self._tensors if not _is_plain(tensor)}
        storages = {_key(tensor): tensor.detach() for tensor in self._tensors if _is_plain(tensor)}
        self._memory = {
            key: pool.take(tensor.untyped_storage().nbytes(), pinned=tensor.is_cuda) for key, tensor in storages.items()
        }
        later = storages.keys() & {_key(tensor) for tensor in unchanging if _is_plain(tensor)}
        self._later = [tensor for key, tensor in storages.items() if key in later]
        self._versions = [tensor._version for tensor in self._later]
        self._copied: list[torch.cuda.Event] = []  # on devices
        self._copy([tensor for key, tensor in storages.items() if key not in later])
        self._copy([tensor for tensor in self._later if tensor.is_cuda], beside=True)
        self._copying: Future = copier.submit(self._copy, [tensor for tensor in self._later if not tensor.is_cuda])

    def finish(self) -> None:
        """Returns when the tensors may change: a device lets work to come wait for the copies, the host goes on.

        Raises:
            RuntimeError: one has changed already, so that its copy may be of two moments.
        """
        self._copying.result()
        for event in self._copied:
            torch.cuda.current_stream().wait_event(event)
        if [tensor._version for tensor in self._later] != self._versions:
            raise RuntimeError(
                "weights or optimizer states were changed between a checkpoint and the optimizer step after it, which "
                "LazyCheckpointing does not allow: the checkpoint was dropped; take the callback out"
            )
        self._later = []

    def restore(self) -> dict[str, Any]:
        """Returns the checkpoint, on the host."""
        for event in self._copied:
            event.synchronize()
        copies = [self._copy_of(tensor) for tensor in self._tensors]
        self._tensors = []
        return _Unpickler(self._plain, copies).load()

    def release(self) -> None:
        """Gives the memory back to the pool; what `restore` returned is void then."""
        for memory in self._memory.values():
            self._pool.give_back(memory)
        self._memory = {}

    def _copy(self, tensors: Sequence[Tensor], beside: bool = False) -> None:
        """Copies storages; ``beside`` the work of their devices, else in its order."""
        for tensor in tensors:
            if not tensor.is_cuda:
                self._memory[_key(tensor)].copy_(_bytes(tensor))
        on_device = [tensor for tensor in tensors if tensor.is_cuda]
        if not on_device:
            return
        work = torch.cuda.current_stream()
        stream = torch.cuda.Stream() if beside else work
        stream.wait_stream(work)
        with torch.cuda.stream(stream):
            for tensor in on_device:
                self._memory[_key(tensor)].copy_(_bytes(tensor), non_blocking=True)
        self._copied.append(stream.record_event())

    def _copy_of(self, tensor: Tensor) -> Tensor:
        if _is_plain(tensor):
            memory = self._memory[_key(tensor)].untyped_storage()
            copy = torch.empty(0, dtype=tensor.dtype).set_(
                memory, tensor.storage_offset(), tensor.size(), tensor.stride()
            )
        else:
            copy = self._loose[id(tensor)]
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copy, requires_grad=tensor.requires_grad)
        return copy.requires_grad_(tensor.requires_grad)


def _pickled(checkpoint: dict[str, Any]) -> tuple[bytes, list[Tensor]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(checkpoint)
    return file.getvalue(), pickler.tensors


class _Pickler(pickle.Pickler):
    """Leaves numbers in the places of tensors."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) not in PLAIN:
            return None
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, plain: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(plain))
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


def _is_plain(tensor: Tensor) -> bool:
    """Whether its storage says all."""
    known = type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")
    return known and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_inference())


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
