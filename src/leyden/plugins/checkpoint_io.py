"""Checkpoints that are whole: written in one stroke, checked when they are read."""

import errno
import os
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch.distributed.device_mesh import DeviceMesh

from leyden.core.replace_file import replace_file
from leyden.plugins._sharded_checkpoint import is_index, read_sharded, remove_unnamed, shard_damage

__all__ = ["AtomicCheckpointIO", "DamagedCheckpointError", "read_checkpoint"]


class DamagedCheckpointError(OSError):
    """A checkpoint file cannot be read.

    Attributes:
        path: the file.
        intact: checkpoints in the same folder that can be read, the newest first.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.intact = _intact_neighbours(path)
        offer = (
            f"intact beside it: {', '.join(map(str, self.intact))}" if self.intact else "nothing intact is beside it"
        )
        super().__init__(f"the checkpoint {path} is damaged ({reason}); {offer}")


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints so that a kill leaves the one before, and reads them without running code from them.

    A file is written under a temporary name in the same folder, synchronised with the disk and renamed. It is always
    read with ``weights_only=True``. What `leyden.plugins.FSDP2Strategy` wrote in parts is read as a whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: tensors and plain values.
            path: the file.
            storage_options: must be None.

        Raises:
            OSError: the file cannot be written; what was there before is left.
            TypeError: there are ``storage_options``.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options must be None: AtomicCheckpointIO has none, got {storage_options!r}")
        try:
            with replace_file(path) as file:
                torch.save(checkpoint, file)
            remove_unnamed(Path(path).parent)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its own, raised while the OSError was being handled
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(
                cause.errno,
                f"the checkpoint {path} could not be written: {cause.strerror}; the file before it is intact",
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a checkpoint.

        Args:
            path: the file.
            map_location: as in `torch.load`.
            weights_only: ignored: never anything but tensors and plain values is read.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedCheckpointError: the file is cut off or altered.
            ValueError: the checkpoint holds other objects than tensors and plain values.
        """
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint, if it is there."""
        path = Path(path)
        path.unlink(missing_ok=True)
        remove_unnamed(path.parent)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = "cpu", *, mesh: DeviceMesh | None = None
) -> dict[str, Any]:
    """Reads a checkpoint.

    Args:
        path: the file.
        map_location: as in `torch.load`.
        mesh: all its processes call this, and get their parts of what was written in parts; None reads it whole.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is cut off or altered.
        ValueError: the checkpoint holds other objects than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} is a folder, as Lightning's sharded strategies and DeepSpeed write them, and no checkpoint of "
            "Leyden: name a file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if (reason := _damage(path, together=mesh is not None)) is not None:
        raise DamagedCheckpointError(path, reason)
    try:
        if is_index(path):
            return read_sharded(path, mesh)
        return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"the checkpoint {path} holds a {name[1] if name else 'Python object'}, but only tensors and plain values "
            "are read, because anything else could run code: save its numbers instead"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise DamagedCheckpointError(path, _first_line(error)) from error


def _damage(path: Path, *, together: bool = False) -> str | None:
    """What is wrong with an archive: torch does not look at the checksums that it writes."""
    if is_index(path):
        return shard_damage(path, together=together)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # altered names, flags and sizes give errors of many kinds
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # (a place before the file's begin)
            raise  # it cannot be read at all
        return _first_line(error)
    return None if bad is None else f"wrong checksum of {bad}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:120]


def _intact_neighbours(path: Path) -> list[Path]:
    others = [other for other in path.parent.glob("[!.]*.ckpt") if other != path]
    return [other for other in sorted(others, key=lambda other: -other.stat().st_mtime) if _damage(other) is None]
