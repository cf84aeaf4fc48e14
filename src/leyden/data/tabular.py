"""Tables: three that are embedded in scikit-learn, and CSV files."""

from abc import abstractmethod
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import Tensor
from torch.utils.data import Dataset

from leyden.data._csv import as_numbers, is_missing, read_csv
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.splits import split_indices

__all__ = ["BreastCancer", "CSVTable", "Diabetes", "Table", "TableDataModule", "Wine"]

_MAX_CLASSES = 20  # integers with more values than this are taken for quantities
_MAX_LEVELS = 1000  # a text column with more values than this is taken for names


class Table(NamedTuple):
    """A whole table, not yet split."""

    numeric: NDArray[np.float64]  # [S, D], NaN where missing
    one_hot: NDArray[np.float64]  # [S, E], 0 or 1
    target: NDArray[Any]  # [S], int64 class numbers or float64


class TableDataModule(DataModule):
    """A table, split at random (classes in equal shares) and standardised with statistics of the training rows alone.

    Samples: ``input`` float32 ``[D + E]``: the numeric columns (missing values become the median; then mean 0, standard
    deviation 1) and after them the 0/1 columns as they are. ``target``: int64, or for regression float32 ``[1]``,
    standardised as well; a prediction ``p`` stands for ``p * target_std + target_mean``.

    A subclass implements `table` and sets ``num_classes`` (None for regression) and ``num_features``.

    Args:
        val_fraction: share of the rows for validation.
        test_fraction: share of the rows for the test.
        split_seed: which split; apart from ``seed``, so that runs of several seeds share their test rows.
        **kwargs: as in `DataModule`.

    Attributes:
        feature_mean: of the numeric columns, float64 ``[D]``; from `setup` on, as the three others.
        feature_std: of the numeric columns, float64 ``[D]``; 1 where a column is constant.
        target_mean: of a regression target.
        target_std: of a regression target.
    """

    num_features: int
    feature_mean: Tensor
    feature_std: Tensor
    target_mean: float
    target_std: float

    def __init__(
        self, *, val_fraction: float = 0.1, test_fraction: float = 0.2, split_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed

    @abstractmethod
    def table(self) -> Table:
        """Returns the table."""

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        numeric, one_hot, target = self.table()
        labels = None if self.num_classes is None else torch.from_numpy(target)
        parts = split_indices(len(target), self.fractions, seed=self.split_seed, labels=labels)
        rows = parts["train"].numpy()
        empty = np.flatnonzero(np.isnan(numeric[rows]).all(0))
        if len(empty):
            raise ValueError(f"numeric column {empty[0]} (counted from 0) has no value in any training row")
        numeric = np.where(np.isnan(numeric), np.nanmedian(numeric[rows], axis=0), numeric)
        mean, std = _moments(numeric[rows])
        self.feature_mean, self.feature_std = torch.from_numpy(mean), torch.from_numpy(std)
        features = torch.from_numpy(np.concatenate([(numeric - mean) / std, one_hot], 1)).to(torch.float32)
        if labels is None:
            target_mean, target_std = _moments(target[rows])
            self.target_mean, self.target_std = float(target_mean), float(target_std)
            labels = torch.from_numpy((target - target_mean) / target_std).to(torch.float32).unsqueeze(-1)  # [S, 1]
        return {
            name: TensorDictDataset({"input": features[i], "target": labels[i]}, sources=i.tolist())
            for name, i in parts.items()
        }


class Wine(TableDataModule):
    """178 wines of three growers by 13 chemical measures (UCI): classification."""

    num_classes = 3
    num_features = 13

    def table(self) -> Table:
        """Returns the table."""
        return _embedded(load_wine())


class BreastCancer(TableDataModule):
    """569 breast tumours, malignant (0) or benign (1), by 30 measures of cell nuclei (UCI): classification."""

    num_classes = 2
    num_features = 30

    def table(self) -> Table:
        """Returns the table."""
        return _embedded(load_breast_cancer())


class Diabetes(TableDataModule):
    """442 patients by ten measures; the target is the progress of diabetes after a year, 25 to 346: regression."""

    num_features = 10

    def table(self) -> Table:
        """Returns the table."""
        return _embedded(load_diabetes(scaled=False))


class CSVTable(TableDataModule):
    """A CSV file with a header line.

    A column whose values are all numbers is numeric; any other is text and becomes one 0/1 column per value found in
    the file (a missing value counts as one more). Missing are, in small or capital letters: nothing, ``?``, ``NA``,
    ``N/A``, ``NaN``, ``null``, ``None``.

    Args:
        path: the file, UTF-8.
        target: name of the column to predict.
        task: by default classification if the target is text, or holds whole numbers of at most 20 values.
        columns: names of the input columns; all but the target if None.
        delimiter: between two fields.
        **kwargs: as in `TableDataModule`.

    Attributes:
        feature_names: of the entries of ``input``; ``column=value`` for the 0/1 columns.
        class_names: values of the target in the order of the class numbers; empty for regression.

    Raises:
        ValueError: there is no such file or column, or the table does not fit the task.
    """

    def __init__(
        self,
        path: str,
        target: str,
        *,
        task: Literal["classification", "regression"] | None = None,
        columns: list[str] | None = None,
        delimiter: str = ",",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        texts = read_csv(path, delimiter)
        for name in [target, *(columns or [])]:
            if name not in texts:
                nearest = get_close_matches(name, texts, n=3, cutoff=0.0)
                raise ValueError(
                    f"{path} has no column {name!r}; the nearest names are {', '.join(map(repr, nearest))}"
                )
        names = [name for name in texts if name != target] if columns is None else columns
        if not names or target in names:
            raise ValueError(f"columns must be one or more names other than the target {target!r}, got {names}")
        values, self.class_names = _read_target(path, target, texts[target], task)
        if self.class_names:
            self.num_classes = len(self.class_names)

        numeric: dict[str, NDArray[np.float64]] = {}
        one_hot: dict[str, NDArray[np.float64]] = {}
        for name in names:
            numbers = as_numbers(texts[name])
            if numbers is None:
                one_hot |= _one_hot(path, name, texts[name])
            elif np.isinf(numbers).any():
                raise ValueError(f"column {name!r} of {path} holds an infinite number")
            else:
                numeric[name] = numbers
        self.feature_names = [*numeric, *one_hot]
        self.num_features = len(self.feature_names)
        self._table = Table(_stack(numeric, len(values)), _stack(one_hot, len(values)), values)

    def table(self) -> Table:
        """Returns the table."""
        return self._table


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    std = values.std(0)
    return values.mean(0), np.where(std > 0.0, std, 1.0)


def _embedded(bunch: Any) -> Table:
    return Table(bunch.data, np.zeros((len(bunch.data), 0)), bunch.target)


def _read_target(path: str, name: str, texts: list[str], task: str | None) -> tuple[NDArray[Any], list[str]]:
    missing = sum(map(is_missing, texts))
    if missing:
        raise ValueError(f"the target {name!r} of {path} is missing in {missing} of {len(texts)} rows")
    numbers = as_numbers(texts)
    if task is None:
        few = numbers is None or (np.all(numbers == np.floor(numbers)) and len(np.unique(numbers)) <= _MAX_CLASSES)
        task = "classification" if few else "regression"
    if task == "regression":
        if numbers is None:
            raise ValueError(f"task='regression' needs numbers, but the target {name!r} of {path} is text")
        return numbers, []
    if numbers is None:
        levels, classes = np.unique(texts, return_inverse=True)
        return classes.astype(np.int64), [str(level) for level in levels]
    levels, classes = np.unique(numbers, return_inverse=True)
    return classes.astype(np.int64), [f"{level:g}" for level in levels]


def _one_hot(path: str, name: str, texts: list[str]) -> dict[str, NDArray[np.float64]]:
    texts = ["" if is_missing(text) else text for text in texts]
    levels, codes = np.unique(texts, return_inverse=True)
    if len(levels) > _MAX_LEVELS:
        raise ValueError(
            f"column {name!r} of {path} is text of {len(levels)} values, more than {_MAX_LEVELS}: "
            "name the columns to use in columns, without this one"
        )
    return {f"{name}={level or 'missing'}": (codes == i).astype(np.float64) for i, level in enumerate(levels)}


def _stack(columns: dict[str, NDArray[np.float64]], num_rows: int) -> NDArray[np.float64]:
    return np.stack(list(columns.values()), axis=1) if columns else np.zeros((num_rows, 0))
