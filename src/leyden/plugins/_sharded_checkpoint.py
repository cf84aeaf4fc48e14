"""Checkpoints of which each process writes its part: a small index file, and a folder beside it with the parts.

The folder is one of `torch.distributed.checkpoint` plus ``rest.pt``, which holds what is not sharded. The index names
the folder and the checksums of its files. It is published last, in one stroke: a kill leaves the checkpoint before.
"""

import json
import pickle
import shutil
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor import empty as empty_shards

from leyden.core.distributed import rank, world_size
from leyden.core.replace_file import replace_file

__all__ = ["is_index", "read_sharded", "remove_unnamed", "shard_damage", "write_sharded"]

SUFFIX = ".shards"
REST = "rest.pt"
MARK = "leyden.shards"  # stands in `rest.pt` where a sharded tensor was
# what torch's own ".metadata", a pickle, is made of beside types of torch's tensors
METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}
T = TypeVar("T")


def is_index(path: Path) -> bool:
    """Whether a file is the index of a sharded checkpoint."""
    with open(path, "rb") as file:
        return file.read(1) == b"{"


def write_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint; to be called by all processes.

    Args:
        checkpoint: its `DTensor` are written by all processes, everything else by the first.
        path: the index.

    Raises:
        OSError: a process could not write; what was there before is left.
    """
    sharded: dict[str, Any] = {}
    rest = _take_out(checkpoint, "", sharded)
    folder: Path | None = None
    try:
        folder = _on_all(lambda: _new_folder(path) if rank() == 0 else None)[0]
        assert folder is not None
        _save_shards(sharded, folder)
        checksums = {name: crc for part in _on_all(partial(_finish, folder, rest)) for name, crc in part.items()}
        _on_all(lambda: _publish(path, folder.name, checksums) if rank() == 0 else None)
    except OSError as error:
        if folder is not None and rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            error.errno,
            f"the checkpoint {path} could not be written: {error.strerror or error}; the file before it is intact",
        ) from error
    if rank() == 0:
        remove_unnamed(path.parent)


def read_sharded(path: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Reads a checkpoint, whole or the part of this process.

    Args:
        path: the index.
        mesh: over whose processes the tensors are sharded, however many wrote them; None reads them whole.

    Returns:
        What `write_sharded` was given.
    """
    from torch.distributed.checkpoint import FileSystemReader, load  # slow to import

    folder = _folder(path)
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    with open(folder / ".metadata", "rb") as file:
        metadata = _MetadataUnpickler(file).load()
    reader = FileSystemReader(folder)
    reader.read_metadata = lambda *args, **kwargs: metadata  # type: ignore[method-assign]  # its own may run code
    tensors: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if mesh is None:
            tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
        else:
            tensors[key] = empty_shards(
                entry.size, dtype=entry.properties.dtype, device_mesh=mesh, placements=[Shard(0)]
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")
        load(tensors, storage_reader=reader, no_dist=True)  # each process reads its part by itself
    return _put_in(rest, tensors)


def shard_damage(path: Path, *, together: bool = False) -> str | None:
    """What is wrong with the files that an index names, if anything is.

    Args:
        path: the index.
        together: whether all processes call this, so that each needs to look at some of the files only.
    """
    try:
        checksums = sorted(json.loads(path.read_text())["crc32"].items())
        folder = _folder(path)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the index cannot be read"
    share = checksums[rank() :: world_size()] if together else checksums
    reason = next((text for name, crc in share if (text := _file_damage(folder / name, crc))), None)
    return next((text for text in _on_all(lambda: reason) if text), None) if together else reason


def remove_unnamed(folder: Path) -> None:
    """Removes parts of checkpoints that no index in the same folder names; all are left if an index is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if parts := set(folder.glob(f"*{SUFFIX}")):
            indices = [path for path in folder.glob("*.ckpt") if path.is_file() and is_index(path)]
            for part in parts - {_folder(path) for path in indices}:
                shutil.rmtree(part)


# ---- tensors


def _take_out(value: Any, key: str, sharded: dict[str, Any]) -> Any:
    """Puts sharded tensors into ``sharded``, and returns the rest, with marks in their places."""
    if isinstance(value, DTensor):
        sharded[key] = value.detach()
        return {MARK: key}
    if isinstance(value, dict):
        return {name: _take_out(item, f"{key}/{name}", sharded) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_take_out(item, f"{key}/{number}", sharded) for number, item in enumerate(value))
    return value


def _put_in(value: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {MARK}:
            return tensors[value[MARK]]
        return {name: _put_in(item, tensors) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_put_in(item, tensors) for item in value)
    return value


# ---- files


def _save_shards(sharded: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save  # slow to import

    try:
        save(sharded, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:  # of all processes
        raise _cause(next(iter(error.failures.values()))[0]) from error


def _folder(path: Path) -> Path:
    return path.parent / json.loads(path.read_text())["shards"]


def _new_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        folder = path.with_name(f"{path.stem}-{number}{SUFFIX}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _finish(folder: Path, rest: dict[str, Any]) -> dict[str, int]:
    """Writes what is not sharded; returns the checksums of what this process wrote."""
    written = list(folder.glob(f"__{rank()}_*"))
    if rank() == 0:
        with replace_file(folder / REST) as file:
            torch.save(rest, file)
        written += [folder / REST, folder / ".metadata"]
    return {path.name: _crc32(path) for path in written}


def _publish(path: Path, folder: str, checksums: dict[str, int]) -> None:
    with replace_file(path) as file:
        file.write((json.dumps({"shards": folder, "crc32": checksums}, indent=1) + "\n").encode())


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.layout))
        if not is_type and (module, name) != ("torch", "Size") and name not in METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _file_damage(path: Path, crc32: int) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    return None if _crc32(path) == crc32 else f"wrong checksum of {path}"


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(2**22):
            crc = zlib.crc32(block, crc)
    return crc


# ---- processes


def _on_all(action: Callable[[], T]) -> list[T]:
    """Results of an action of all processes, by rank; an error of one is raised by all, so that none waits."""
    try:
        mine: tuple[Any, BaseException | None] = action(), None
    except Exception as error:
        mine = None, _cause(error)
    outcomes: list[Any] = [mine]
    if world_size() > 1:
        outcomes = [None] * world_size()
        dist.all_gather_object(outcomes, mine)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]


def _cause(error: BaseException) -> BaseException:
    """The `OSError` behind an error, if there is one: torch reports a failed write as one of its own."""
    return next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)), error)
