"""Datasets that a training stage wrote: tensors by batch key in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["DatasetFile", "pack_tensors", "read_tensors"]

DatasetFile = Annotated[str, "dataset"]  # path of a safetensors file with one tensor [S, ...] per batch key


def pack_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the content of a file of tensors.

    Args:
        tensors: ``[S, ...]`` each, by batch key.
        metadata: what the file says of itself.

    Raises:
        ValueError: their lengths differ.
    """
    lengths = {key: len(tensor) for key, tensor in tensors.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"tensors must be at least one and of equal length, got the lengths {lengths}")
    copied = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    return _in_order(safetensors.torch.save(copied, metadata={"leyden": "dataset", **(metadata or {})}))


def read_tensors(path: DatasetFile, *keys: str) -> dict[str, Tensor]:
    """Reads a file of `pack_tensors`.

    Args:
        path: the file.
        *keys: tensors that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or lacks a tensor.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no dataset file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("leyden")
        if kind != "dataset":
            raise ValueError(f"{path} is no dataset file, it holds {kind or 'other tensors'}")
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if missing := [key for key in keys if key not in tensors]:
        raise ValueError(f"{path} has no {missing[0]!r}, only {', '.join(sorted(tensors))}")
    return tensors


def _in_order(content: bytes) -> bytes:
    """Sorts the metadata, which safetensors writes in another order each time: the same content is the same file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
