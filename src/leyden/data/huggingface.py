"""Hugging Face data sets: numbers and pictures, and texts to classify."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.batch import Batch
from leyden.data.dataset import normalize_pixels
from leyden.data.image_folder import image_to_pixels, require_pillow
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

__all__ = ["HuggingFaceDataModule", "HuggingFaceDataset", "HuggingFaceText"]

_FILE_KINDS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class HuggingFaceDataModule(DataModule):
    """What `HuggingFaceDataset` and `HuggingFaceText` share: finding the rows, the three parts, and the targets.

    ``target`` is int64 if the column is a class label, text or whole numbers (the classes are then the values that
    occur, sorted), and float32 ``[1]`` if it holds other numbers. Rows stay on disk until they are asked for.

    A subclass implements `encode`.

    Args:
        path: name of a data set on the hub, a folder made by ``save_to_disk``, or a csv, json, jsonl or parquet file.
        input_column: name of the column that is the input.
        target_column: name of the column that is to be predicted.
        name: which configuration of the data set.
        splits: which of its parts are ``train``, ``val`` and ``test``; only ``train`` if None. What is not named here
            is split off the training rows.
        val_fraction: share for validation where ``splits`` names none.
        test_fraction: share for the test where ``splits`` names none.
        split_seed: which split; apart from ``seed``, so that runs of several seeds share their test rows.
        **kwargs: as in `DataModule`.

    Attributes:
        class_names: in the order of the class numbers; empty for regression.

    Raises:
        ImportError: the package ``datasets`` is not installed.
        ValueError: there is no such file, part or column, or a target is unknown (-1).
    """

    def __init__(
        self,
        path: str,
        *,
        input_column: str,
        target_column: str,
        name: str | None = None,
        splits: dict[str, str] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.input_column = input_column
        self.target_column = target_column
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed
        found = _load(path, name)
        self._rows = {}
        for part, source in (splits or {"train": "train"}).items():
            if part not in ("train", "val", "test") or source not in found:
                raise ValueError(
                    f"splits must map train, val or test to one of {list(found)} of {path}, got {part!r}: {source!r}"
                )
            self._rows[part] = found[source]
        if "train" not in self._rows:
            raise ValueError(f"splits must say what 'train' is, got {splits}")
        for rows in self._rows.values():
            for column in (input_column, target_column):
                if column not in rows.column_names:
                    nearest = ", ".join(map(repr, get_close_matches(column, rows.column_names, n=3, cutoff=0.0)))
                    raise ValueError(f"{path} has no column {column!r}; the nearest names are {nearest}")
        self._targets, self.class_names = self._read_targets()
        if self.class_names:
            self.num_classes = len(self.class_names)

    def encode(self, values: list[Any]) -> Batch:
        """Returns the batch of a list of input values, without ``target``."""
        raise NotImplementedError

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        fractions = {part: fraction for part, fraction in self.fractions.items() if part not in self._rows}
        target = self._targets["train"]
        labels = target if self.class_names else None
        indices = split_indices(len(target), fractions, seed=self.split_seed, labels=labels)
        parts: dict[str, Dataset] = {}
        for part in ("train", "val", "test"):
            source = part if part in self._rows else "train"
            rows = indices.get(part, torch.arange(len(self._targets[source])))
            inputs = self._rows[source].select_columns([self.input_column])
            parts[part] = _Rows(inputs, self._targets[source], rows, self.encode)
        return parts

    def _read_targets(self) -> tuple[dict[str, Tensor], list[str]]:
        columns = {part: rows[self.target_column][:] for part, rows in self._rows.items()}
        names = getattr(self._rows["train"].features[self.target_column], "names", None)
        if names is not None:
            unknown = next((part for part, column in columns.items() if -1 in column), None)
            if unknown:
                raise ValueError(f"the targets of {unknown!r} are not known (-1): leave it out of splits")
            return {part: torch.tensor(column, dtype=torch.int64) for part, column in columns.items()}, names
        values = [value for column in columns.values() for value in column]
        if any(isinstance(value, float) for value in values):
            return {part: torch.tensor(column).to(torch.float32).unsqueeze(-1) for part, column in columns.items()}, []
        levels = {value: number for number, value in enumerate(sorted(set(values)))}
        targets = {part: torch.tensor([levels[value] for value in column]) for part, column in columns.items()}
        return targets, [str(level) for level in levels]


class HuggingFaceDataset(HuggingFaceDataModule):
    """Numbers or pictures of a Hugging Face data set.

    Samples: ``input`` float32: of a column of numbers or lists as it is, of a column of pictures ``[3, image_size,
    image_size]``, normalised, where the shorter side is resized to ``image_size`` and the middle is cut out.

    Args:
        path: as in `HuggingFaceDataModule`.
        image_size: side of the square in pixels; needed for a column of pictures.
        mean: of the pixels in [0, 1], per channel; ImageNet's by default.
        std: of the pixels in [0, 1], per channel.
        **kwargs: as in `HuggingFaceDataModule`.

    Raises:
        ValueError: the column holds pictures, and ``image_size`` was not given.
    """

    def __init__(
        self,
        path: str,
        *,
        image_size: int | None = None,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.image_size = image_size
        self.mean = mean
        self.std = std
        if type(self._rows["train"].features[self.input_column]).__name__ == "Image":
            require_pillow(type(self).__name__)
            if image_size is None:
                raise ValueError(f"image_size must be given: the column {self.input_column!r} holds pictures")

    def encode(self, values: list[Any]) -> Batch:
        """Returns ``input``."""
        if self.image_size is None:
            return {"input": torch.from_numpy(np.asarray(values, dtype=np.float32))}
        pixels = torch.stack([image_to_pixels(image, self.image_size) for image in values])
        return {"input": normalize_pixels(pixels, self.mean, self.std)}


class HuggingFaceText(HuggingFaceDataModule):
    """Texts of a Hugging Face data set, to be classified.

    Samples: ``input`` int64 ``[max_length]``, cut off or filled up with ``pad``; ``mask`` bool, True where text is.

    Args:
        path: as in `HuggingFaceDataModule`.
        max_length: tokens of a sample.
        tokenizer: ``"byte"``: the 256 bytes of UTF-8 (``pad`` is then 0); else name or folder of a `transformers` one.
        input_column: name of the column that holds the texts.
        **kwargs: as in `HuggingFaceDataModule`.

    Attributes:
        vocab_size: number of different tokens.

    Raises:
        ValueError: ``max_length`` is below 1, or the tokenizer has no padding token.
    """

    def __init__(
        self, path: str, *, max_length: int = 128, tokenizer: str = "byte", input_column: str = "text", **kwargs: Any
    ) -> None:
        super().__init__(path, input_column=input_column, **kwargs)
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        if tokenizer == "byte":
            self._tokenizer, self.pad, self.vocab_size = None, 0, 256
            return
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.vocab_size = len(self._tokenizer)
        self.pad = self._tokenizer.pad_token_id
        if self.pad is None:
            raise ValueError(f"tokenizer {tokenizer!r} has no padding token: set one and save it to a folder")

    def encode(self, values: list[Any]) -> Batch:
        """Returns ``input`` and ``mask``."""
        if self._tokenizer is None:
            tokens = [list(text.encode()[: self.max_length]) for text in values]
        else:
            tokens = self._tokenizer(values, truncation=True, max_length=self.max_length)["input_ids"]
        lengths = torch.tensor([len(row) for row in tokens]).unsqueeze(-1)  # [N, 1]
        filled = [row + [self.pad] * (self.max_length - len(row)) for row in tokens]
        return {"input": torch.tensor(filled), "mask": torch.arange(self.max_length) < lengths}


class _Rows(Dataset):
    """Some rows of one column, with their targets."""

    def __init__(self, inputs: Any, target: Tensor, rows: Tensor, encode: Callable[[list[Any]], Batch]) -> None:
        self.inputs, self.target, self.rows, self.encode = inputs, target, rows, encode
        self.sources = rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return {key: rows[0] for key, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self.rows[torch.tensor(indices, dtype=torch.int64)]
        (values,) = self.inputs[rows.tolist()].values()
        return {**self.encode(values), "target": self.target[rows]}


def _load(path: str, name: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Hugging Face data sets need the package datasets: pip install 'leyden[text]'") from error
    file = Path(path)
    if file.suffix in _FILE_KINDS:
        if not file.is_file():
            raise ValueError(f"path must name a data set, but there is no file {path}")
        return datasets.load_dataset(_FILE_KINDS[file.suffix], data_files=path)
    if (file / "dataset_dict.json").is_file() or (file / "dataset_info.json").is_file():
        found = datasets.load_from_disk(path)
        return found if isinstance(found, dict) else {"train": found}
    return datasets.load_dataset(path, name)
