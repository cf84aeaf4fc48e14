"""MNIST files."""

import gzip
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.data.dataset import ImageTensorDataset
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

__all__ = ["MNISTFiles", "read_idx"]


class MNISTFiles(DataModule):
    """MNIST, or a set in its format (Fashion-MNIST, KMNIST): IDX files under their original names, plain or ``.gz``.

    Samples: ``input`` float32 ``[1, H, W]``, normalised, ``target`` int64. Validation samples are split off the
    training files. A folder with only the ``train-*`` or only the ``t10k-*`` pair is split into all three parts.

    Args:
        root: folder of ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two ``t10k-*`` files.
        val_fraction: share of the training files for validation.
        test_fraction: share for the test where the folder holds one pair only.
        mean: of the pixels in [0, 1]; MNIST's own by default.
        std: of the pixels in [0, 1].
        split_seed: which split; apart from ``seed``, so that runs of several seeds share their test samples.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: files are missing, cut off or of another format.
    """

    num_classes: int = 10

    def __init__(
        self,
        root: str,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        mean: tuple[float, ...] = (0.1307,),
        std: tuple[float, ...] = (0.3081,),
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.mean = mean
        self.std = std
        self.split_seed = split_seed
        self._pairs = self._find_pairs()

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        both = len(self._pairs) == 2
        images, target = self._read_pair(self._pairs[0])
        fractions = {"val": self.val_fraction} | ({} if both else {"test": self.test_fraction})
        parts = split_indices(len(target), fractions, seed=self.split_seed, labels=target)
        tensors = {name: (images[rows], target[rows]) for name, rows in parts.items()}
        if both:
            tensors["test"] = self._read_pair(self._pairs[1])
        return {name: ImageTensorDataset(*pair, mean=self.mean, std=self.std) for name, pair in tensors.items()}

    def _find_pairs(self) -> list[tuple[Path, Path]]:
        pairs = []
        for prefix in ("train", "t10k"):
            names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
            images, labels = (self._find(name) for name in names)
            if images and labels:
                pairs.append((images, labels))
            elif images or labels:
                here, missing = names if images else names[::-1]
                raise ValueError(f"root {self.root} has {here}, but neither {missing} nor {missing}.gz")
        if not pairs:
            raise ValueError(
                f"root must be a folder of MNIST files, but {self.root} has neither train-images-idx3-ubyte nor "
                "t10k-images-idx3-ubyte, plain or .gz"
            )
        return pairs

    def _find(self, name: str) -> Path | None:
        paths = (self.root / name, self.root / f"{name}.gz")
        return next((path for path in paths if path.is_file()), None)

    def _read_pair(self, paths: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise ValueError(f"{paths[0]} has {len(images)} images, but {paths[1].name} {len(labels)} labels")
        if labels.max() >= self.num_classes:
            raise ValueError(f"{paths[1]} must hold the labels 0..{self.num_classes - 1}, but has {int(labels.max())}")
        return images.unsqueeze(1), labels.to(torch.int64)  # [S, 1, H, W], [S]


def read_idx(path: Path, num_dimensions: int) -> Tensor:
    """Reads an IDX file of bytes, plain or ``.gz``.

    Args:
        path: the file.
        num_dimensions: that it must have: 3 for grey images, 1 for labels.

    Returns:
        uint8, of the shape that the file says.

    Raises:
        ValueError: the file has another magic number, or another size than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error
    magic = bytes([0, 0, 8, num_dimensions])  # 8: unsigned bytes
    if content[:4] != magic:
        raise ValueError(
            f"{path} must begin with the IDX magic number {magic.hex()}, but begins with {content[:4].hex()}"
        )
    start = 4 + 4 * num_dimensions
    shape = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, start, 4))  # big-endian
    size = start + math.prod(shape)
    if len(content) != size or size == start:
        raise ValueError(f"{path} has {len(content)} bytes, but its header stands for {size} and at least one entry")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
