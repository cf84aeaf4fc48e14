"""State dicts on disk, read one tensor at a time: safetensors, checkpoints of Lightning, and `torch.save`."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

__all__ = ["CheckpointFile"]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class _Entry:
    offset: int  # in the file, in bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def length(self) -> int:
        """Elements from the first to the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class CheckpointFile(Mapping[str, Tensor]):
    """The state dict of a file; each look-up reads one tensor, into memory of its own.

    Of a Lightning checkpoint that is its ``state_dict`` (which is the average, where there is one).

    Args:
        path: a safetensors file, or what `torch.save` wrote.

    Attributes:
        path: the file.
        header: of safetensors the metadata; of a checkpoint what is beside the ``state_dict``, tensors without values.
        num_bytes: of all tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or was cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file of weights {path}")
        self.header, self._entries = _read_header(self.path)
        unique = {entry.offset: entry.length * entry.dtype.itemsize for entry in self._entries.values()}
        self.num_bytes = sum(unique.values())
        size = self.path.stat().st_size
        if any(offset + count > size for offset, count in unique.items()):
            raise ValueError(f"{path} was cut off: it has {size} bytes")

    @property
    def is_lightning(self) -> bool:
        """Whether it is a checkpoint of Lightning."""
        return "pytorch-lightning_version" in self.header

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of an entry without reading it."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an entry without reading it."""
        return self._entries[name].shape

    def is_contiguous(self, name: str) -> bool:
        """Whether the elements of an entry lie one behind the other in the order of its shape."""
        entry = self._entries[name]
        return entry.stride == _contiguous_stride(entry.shape)

    def place(self, name: str) -> Any:
        """Names the memory of an entry: the same for two names of one tensor."""
        return self._entries[name]

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        flat = torch.empty(entry.length, dtype=entry.dtype)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(entry.offset)
            self._read(file, flat, name)
        return flat.as_strided(entry.shape, entry.stride)

    def pieces(self, name: str, buffer: Tensor) -> Iterator[Tensor]:
        """Reads an entry piece by piece, flat, in the order of memory.

        Args:
            name: of the entry.
            buffer: of the entry's dtype; each piece is read into it, over the last one.
        """
        entry = self._entries[name]
        with open(self.path, "rb", buffering=0) as file:
            file.seek(entry.offset)
            for start in range(0, entry.length, len(buffer)):
                piece = buffer[: entry.length - start]
                self._read(file, piece, name)
                yield piece

    def _read(self, file: RawIOBase, flat: Tensor, name: str) -> None:
        memory = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        while memory:  # one call reads 2 GiB at most
            count = file.readinto(memory)
            if not count:
                raise ValueError(f"{self.path} was cut off within {name!r}")
            memory = memory[count:]

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, _Entry]]:
    with open(path, "rb") as file:
        magic = file.read(4)
    return _read_zip(path) if magic == b"PK\x03\x04" else _read_safetensors(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, _Entry]]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {}
        for name, part in header.items():
            shape = tuple(part["shape"])
            offset = 8 + length + part["data_offsets"][0]
            entries[name] = _Entry(offset, DTYPES[part["dtype"]], shape, _contiguous_stride(shape))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        with open(path, "rb") as file:
            is_index = file.read(1) == b"{"
        if is_index:
            raise ValueError(
                f"{path} is the index of a sharded checkpoint: write its weights into one file first, by "
                f"leyden export {path} --to safetensors"
            ) from error
        raise ValueError(f"{path} is neither a safetensors file nor a checkpoint of torch.save: {error}") from error
    return metadata, entries


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _read_zip(path: Path) -> tuple[dict[str, Any], dict[str, _Entry]]:
    try:
        # without values; torch notes where in the file they are
        content = torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values, which could run code") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    header = dict(content) if isinstance(content, Mapping) else {}
    state = header.pop("state_dict", header)
    if not isinstance(state, Mapping) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} has no state_dict of tensors")
    return header, {name: _entry(tensor) for name, tensor in state.items()}


def _entry(tensor: Tensor) -> _Entry:
    start = tensor.untyped_storage()._checkpoint_offset
    assert start is not None  # torch sets it
    offset = start + int(tensor.storage_offset()) * tensor.dtype.itemsize
    return _Entry(offset, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
