"""A teacher's logits on disk, by sample number."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["LogitCache"]


class LogitCache:
    """Memory-mapped rows of logits keyed by ``batch["index"]``: one ``.npy`` file that all processes share.

    The file is a structured array of (written, logits) per sample, which ``numpy.load`` reads as well. Rows that were
    never written take no disk space on file systems with sparse files.

    Args:
        path: file; made if it does not exist.
        num_samples: size of the data set.
        num_classes: length of a row.
        dtype: ``"float32"`` keeps a row bit for bit, ``"float16"`` takes half the space.

    Raises:
        ValueError: another ``dtype``, or the file exists with another size or dtype, or is no cache.
    """

    def __init__(self, path: str | Path, num_samples: int, num_classes: int, *, dtype: str = "float32") -> None:
        self.path = Path(path)
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
        row = np.dtype([("written", np.bool_), ("logits", dtype, (num_classes,))])
        if not self.path.exists():
            # Under its final name only when its header is complete, and only once if processes race.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=row, shape=(num_samples,)).flush()
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        try:
            self._rows = np.lib.format.open_memmap(self.path, mode="r+")
        except ValueError as error:
            raise ValueError(f"{self.path} is no logit cache: {error}") from error
        if self._rows.shape != (num_samples,) or self._rows.dtype != row:
            raise ValueError(
                f"{self.path} holds {self._rows.shape[0]} rows of {self._rows.dtype}, but {num_samples} rows of {row} "
                "are needed: it was made for other data or another teacher; remove it or name another file"
            )

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits ``[N, C]``, on the device of ``index``, and whether each row was written, bool ``[N]``."""
        rows = self._rows[index.cpu().numpy()]
        logits, written = torch.from_numpy(rows["logits"].copy()), torch.from_numpy(rows["written"].copy())
        return logits.to(index.device), written.to(index.device)

    def write(self, index: Tensor, logits: Tensor) -> None:
        """Writes rows ``[N, C]``; the logits first, then the flags, so that a kill leaves no row half written."""
        numbers = index.cpu().numpy()
        self._rows["logits"][numbers] = logits.detach().float().cpu().numpy()
        self._rows["written"][numbers] = True

    def flush(self) -> None:
        """Waits until everything is on disk."""
        self._rows.flush()
