"""CIFAR files (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.data.dataset import ImageTensorDataset
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

__all__ = ["CIFAR"]


class CIFAR(DataModule):
    """CIFAR-10 or CIFAR-100 from the authors' "python version" files.

    Samples: ``input`` float32 ``[3, 32, 32]``, normalised, ``target`` int64 (of CIFAR-100 the fine labels).

    Args:
        root: folder of ``data_batch_1`` to ``data_batch_5``, ``test_batch``, ``batches.meta``; for CIFAR-100 of
            ``train``, ``test``, ``meta``.
        num_classes: 10 or 100.
        val_fraction: share of the training files for validation.
        mean: of the pixels in [0, 1], per channel; the data set's own if None.
        std: of the pixels in [0, 1], per channel; the data set's own if None.
        split_seed: which split; apart from ``seed``, so that runs of several seeds share their validation samples.
        **kwargs: as in `DataModule`.

    Attributes:
        class_names: in the order of the class numbers.

    Raises:
        ValueError: files are missing, cut off or of another format.
    """

    num_classes: int

    def __init__(
        self,
        root: str,
        num_classes: int = 10,
        *,
        val_fraction: float = 0.1,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes not in (10, 100):
            raise ValueError(f"num_classes must be 10 or 100, got {num_classes}")
        small = num_classes == 10
        self.root = Path(root)
        self.num_classes = num_classes
        self.val_fraction = val_fraction
        self.mean = mean or ((0.4914, 0.4822, 0.4465) if small else (0.5071, 0.4865, 0.4409))
        self.std = std or ((0.2470, 0.2435, 0.2616) if small else (0.2673, 0.2564, 0.2762))
        self.split_seed = split_seed
        self._train = [f"data_batch_{number}" for number in range(1, 6)] if small else ["train"]
        self._test = "test_batch" if small else "test"
        meta = "batches.meta" if small else "meta"
        missing = [name for name in [*self._train, self._test, meta] if not (self.root / name).is_file()]
        if missing:
            raise ValueError(
                f"root must be the folder of CIFAR-{num_classes}, but {self.root} lacks {', '.join(missing)}"
            )
        names = self._read(meta, b"label_names" if small else b"fine_label_names")[0]
        self.class_names = [name.decode() for name in names]

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        batches = [self._read_images(name) for name in self._train]
        images, target = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        parts = split_indices(len(target), {"val": self.val_fraction}, seed=self.split_seed, labels=target)
        tensors = {name: (images[rows], target[rows]) for name, rows in parts.items()}
        tensors["test"] = self._read_images(self._test)
        return {name: ImageTensorDataset(*pair, mean=self.mean, std=self.std) for name, pair in tensors.items()}

    def _read_images(self, name: str) -> tuple[Tensor, Tensor]:
        pixels, labels = self._read(name, b"data", b"labels" if self.num_classes == 10 else b"fine_labels")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError(f"{self.root / name} must hold {len(labels)} rows of 3072 bytes, one per label")
        target = torch.tensor(labels, dtype=torch.int64)
        if not 0 <= int(target.min()) <= int(target.max()) < self.num_classes:
            raise ValueError(
                f"{self.root / name} must hold the labels 0..{self.num_classes - 1}, but has {max(labels)}"
            )
        return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), target

    def _read(self, name: str, *keys: bytes) -> list[Any]:
        path = self.root / name
        try:
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file, encoding="bytes").load()
            return [content[key] for key in keys]
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no whole CIFAR-{self.num_classes} file: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles lists, dicts, bytes and numpy arrays, and calls nothing else: a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]  # the module of this function has changed its name
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, align, copy: np.dtype(kind)  # the files hold 0 and 1 where numpy now wants bools
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, where only numpy arrays may stand")
