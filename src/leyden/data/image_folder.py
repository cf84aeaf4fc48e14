"""Folders of pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.data.dataset import normalize_pixels
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFolder", "image_to_pixels"]

_IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageFolder(DataModule):
    """Pictures in one folder per class.

    Samples: ``input`` float32 ``[3, image_size, image_size]``, normalised, ``target`` int64. The shorter side becomes
    ``image_size`` pixels long and the middle is cut out; pictures are decoded when asked for, in the loading processes.

    The folders are ``root/<class>/...``, or ``root/train/<class>/...`` with ``val`` and ``test`` beside ``train``; what
    has no folder is split off the training pictures. Files without the ending of a picture are left out.

    Args:
        root: the folder.
        image_size: side of the square that is handed out, in pixels.
        val_fraction: share for validation where there is no ``val`` folder.
        test_fraction: share for the test where there is no ``test`` folder.
        mean: of the pixels in [0, 1], per channel; ImageNet's by default.
        std: of the pixels in [0, 1], per channel.
        split_seed: which split; apart from ``seed``, so that runs of several seeds share their test samples.
        **kwargs: as in `DataModule`.

    Attributes:
        class_names: in the order of the class numbers: sorted.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: a folder is missing or holds no pictures, or ``image_size`` is below 1.
    """

    num_classes: int

    def __init__(
        self,
        root: str,
        image_size: int,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_pillow(type(self).__name__)
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if not Path(root).is_dir():
            raise ValueError(f"root must be a folder of pictures, but there is no folder {root}")
        self.root = Path(root)
        self.image_size = image_size
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.mean = mean
        self.std = std
        self.split_seed = split_seed
        self._train = self.root / "train" if (self.root / "train").is_dir() else self.root
        self.class_names = sorted(path.name for path in self._train.iterdir() if path.is_dir())
        self.num_classes = len(self.class_names)
        if not self.class_names:
            raise ValueError(f"root must hold one folder per class, but {self._train} has no folders")

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        given = (
            {}
            if self._train == self.root
            else {name: self._list(self.root / name) for name in self.fractions if (self.root / name).is_dir()}
        )
        paths, target = self._list(self._train)
        fractions = {name: fraction for name, fraction in self.fractions.items() if name not in given}
        rows = split_indices(len(paths), fractions, seed=self.split_seed, labels=target)
        parts = {name: ([paths[i] for i in row.tolist()], target[row]) for name, row in rows.items()} | given
        return {name: _Pictures(*part, self.image_size, self.mean, self.std) for name, part in parts.items()}

    def _list(self, folder: Path) -> tuple[list[Path], Tensor]:
        strange = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(self.class_names))
        if strange:
            raise ValueError(f"{folder} has the class {strange[0]!r}, which {self._train} has not")
        paths, target = [], []
        for number, name in enumerate(self.class_names):
            found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _IMAGE_ENDINGS)
            if not found and folder == self._train:
                raise ValueError(f"{folder / name} has no picture ({', '.join(sorted(_IMAGE_ENDINGS))})")
            paths += found
            target += [number] * len(found)
        if not paths:
            raise ValueError(f"{folder} has no picture ({', '.join(sorted(_IMAGE_ENDINGS))})")
        return paths, torch.tensor(target)


def image_to_pixels(image: "Image", size: int) -> Tensor:
    """Resizes the shorter side to ``size``, cuts out the middle square, converts to RGB.

    Returns:
        uint8 ``[3, size, size]``.
    """
    from PIL.Image import Resampling

    image = image.convert("RGB")
    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def require_pillow(user: str) -> None:
    """Raises `ImportError` with what to do if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{user} decodes pictures with Pillow: pip install 'leyden[vision]'") from error


class _Pictures(Dataset):
    """Decodes a picture when it is asked for."""

    def __init__(
        self, paths: list[Path], target: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.paths, self.target, self.size, self.mean, self.std = paths, target, size, mean, std
        self.sources = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        from PIL import Image

        try:
            with Image.open(self.paths[index]) as image:
                pixels = image_to_pixels(image, self.size)
        except OSError as error:
            raise ValueError(f"{self.paths[index]} cannot be decoded: {error}") from error
        return {"input": normalize_pixels(pixels, self.mean, self.std), "target": self.target[index]}
