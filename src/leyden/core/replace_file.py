"""Writing a file as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_file"]


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file that takes the place of ``path`` when the ``with`` ends without an error.

    Whoever opens ``path`` sees the old content or the new, also after a kill or a loss of power at any moment. An error
    removes the temporary file and leaves the old content. Only one process at a time may write a file.

    Args:
        path: the file; its folder is made if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # same folder: a rename across disks is not atomic; always one name: what a kill has left is overwritten
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a loss of power
    finally:
        os.close(folder)
