"""Data sets that are tensors in memory."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from leyden.core.batch import Batch

__all__ = ["ImageTensorDataset", "TensorDictDataset", "all_samples", "normalize_pixels"]


class TensorDictDataset(Dataset):
    """Tensors of equal length by batch key; a whole batch is one ``index_select`` per tensor.

    Args:
        tensors: ``[S, ...]`` each, by batch key.
        sources: what each sample is called where it comes from, such as its row there.

    Raises:
        ValueError: there is no tensor, or their lengths differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, sources: Sequence[Any] | None = None) -> None:
        self.tensors = dict(tensors)
        self.sources = sources
        lengths = {key: len(tensor) for key, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"tensors must be at least one and of equal length, got the lengths {lengths}")
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        """Number of samples."""
        return self._length

    def __getitem__(self, index: int) -> Batch:
        """Returns one sample, without batch dimension."""
        return {key: tensor[index] for key, tensor in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        """Returns a batch, ``[N, ...]`` per key."""
        rows = torch.tensor(indices, dtype=torch.int64)
        return {key: tensor.index_select(0, rows) for key, tensor in self.tensors.items()}


class ImageTensorDataset(TensorDictDataset):
    """Images kept as bytes and handed out as normalised numbers, under ``input`` and ``target``.

    Args:
        images: uint8 ``[S, C, H, W]``.
        target: class numbers, int64 ``[S]``.
        mean: of the pixels in [0, 1], per channel.
        std: of the pixels in [0, 1], per channel.

    Raises:
        ValueError: ``mean`` or ``std`` is not one number per channel.
    """

    def __init__(self, images: Tensor, target: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__({"input": images, "target": target})
        if not len(mean) == len(std) == images.shape[1]:
            raise ValueError(
                f"mean and std must have one number for each of the {images.shape[1]} channels, got {mean} and {std}"
            )
        self.mean, self.std = mean, std

    def __getitem__(self, index: int) -> Batch:
        """Returns one sample, without batch dimension."""
        return self._normalized(super().__getitem__(index))

    def __getitems__(self, indices: list[int]) -> Batch:
        """Returns a batch."""
        return self._normalized(super().__getitems__(indices))

    def _normalized(self, batch: Batch) -> Batch:
        return {**batch, "input": normalize_pixels(batch["input"], self.mean, self.std)}


def all_samples(dataset: Dataset) -> Batch:
    """Returns a whole data set as one batch."""
    size = len(dataset)  # type: ignore[arg-type]
    if hasattr(dataset, "__getitems__"):
        return cast(Batch, dataset.__getitems__(list(range(size))))
    return default_collate([dataset[number] for number in range(size)])


def normalize_pixels(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Returns ``(pixels / 255 - mean) / std``.

    Args:
        pixels: uint8 ``[..., C, H, W]``.
        mean: of the pixels in [0, 1], per channel.
        std: of the pixels in [0, 1], per channel.

    Returns:
        float32 ``[..., C, H, W]``.
    """
    shift, scale = (torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1) for numbers in (mean, std))
    return pixels.to(torch.float32).div_(255.0).sub_(shift).div_(scale)
