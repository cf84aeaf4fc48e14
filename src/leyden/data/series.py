"""Windows of multivariate series in which values are missing, to be forecast: a generated series, and CSV files."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leyden.core.random import normal, sample_keys, uniform
from leyden.data._csv import as_numbers, read_csv
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.splits import shuffled_order

__all__ = ["CoupledSinusoids", "SeriesDataModule", "SeriesFile"]


class SeriesDataModule(DataModule):
    """All windows of a series, with missing values in the past and the complete future as target.

    The series is cut in time into training, validation and test, and each variate standardised with the training part.
    Samples: ``input`` float32 ``[T, V]``, zeros where missing; ``mask`` bool ``[T, V]``, True where observed;
    ``target`` float32 ``[H, V]``.

    A subclass implements `series`.

    Args:
        input_length: T, steps of the past.
        horizon: H, steps of the future.
        missing_rate: share of the values that is missing.
        missing: ``"points"``, each value by itself, or ``"columns"``, whole variates, all the time.
        val_fraction: share of the steps for validation.
        test_fraction: share of the steps for the test, the last ones.
        data_seed: which values are missing; apart from ``seed``, so that runs of several seeds share their data.
        **kwargs: as in `DataModule`.

    Raises:
        ValueError: a number is out of range, or there is no such pattern.
    """

    def __init__(
        self,
        *,
        input_length: int = 24,
        horizon: int = 24,
        missing_rate: float = 0.4,
        missing: Literal["points", "columns"] = "points",
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if input_length < 1 or horizon < 1:
            raise ValueError(f"input_length and horizon must be at least 1, got {input_length} and {horizon}")
        if not 0.0 <= missing_rate < 1.0:
            raise ValueError(f"missing_rate must lie in [0, 1), got {missing_rate}")
        if missing not in ("points", "columns"):
            raise ValueError(f"missing must be 'points' or 'columns', got {missing!r}")
        if min(val_fraction, test_fraction) <= 0.0 or val_fraction + test_fraction >= 1.0:
            raise ValueError(
                f"val_fraction and test_fraction must be positive and below 1 together, got {val_fraction} and "
                f"{test_fraction}"
            )
        self.input_length = input_length
        self.horizon = horizon
        self.missing_rate = missing_rate
        self.missing = missing
        self.fractions = (val_fraction, test_fraction)
        self.data_seed = data_seed

    @abstractmethod
    def series(self) -> Tensor:
        """Returns the whole series, float ``[S, V]``, without gaps."""

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts.

        Raises:
            ValueError: a part is shorter than a window.
        """
        series = self.series().to(torch.float64)
        val, test = (round(share * len(series)) for share in self.fractions)
        lengths = {"train": len(series) - val - test, "val": val, "test": test}
        shortest = min(lengths, key=lambda part: lengths[part])
        if lengths[shortest] < self.input_length + self.horizon:
            raise ValueError(
                f"the {shortest} part has {lengths[shortest]} steps, a window takes input_length + horizon = "
                f"{self.input_length + self.horizon}"
            )
        std, mean = torch.std_mean(series[: lengths["train"]], 0, correction=0)
        series = ((series - mean) / std.where(std > 0.0, 1.0)).to(torch.float32)
        observed = self._observed(*series.shape)
        pieces = [tensor.split(list(lengths.values())) for tensor in (series * observed, observed, series)]
        return {part: self._windows(*piece) for part, *piece in zip(lengths, *pieces, strict=True)}

    def _observed(self, num_steps: int, num_variates: int) -> Tensor:
        if self.missing == "columns":
            missing = shuffled_order(num_variates, self.data_seed)[: round(self.missing_rate * num_variates)]
            return torch.ones(num_steps, num_variates, dtype=torch.bool).index_fill_(1, missing, False)
        return uniform(sample_keys(self.data_seed, 1, torch.arange(num_steps)), num_variates) >= self.missing_rate

    def _windows(self, past: Tensor, observed: Tensor, future: Tensor) -> TensorDictDataset:
        # views: a step is in memory once, not once per window
        length = self.input_length + self.horizon
        windows = [tensor.unfold(0, length, 1).transpose(1, 2) for tensor in (past, observed, future)]  # [W, T + H, V]
        return TensorDictDataset(
            {
                "input": windows[0][:, : self.input_length],
                "mask": windows[1][:, : self.input_length],
                "target": windows[2][:, self.input_length :],
            }
        )


class CoupledSinusoids(SeriesDataModule):
    """Variates that are different mixtures of the same sinusoids, with noise: what is missing in one is in the others.

    Args:
        num_variates: V.
        num_steps: S, length of the series.
        num_sources: number of sinusoids, of periods from 8 to 64 steps.
        noise: standard deviation of the noise; the mixtures have one of about 1.
        **kwargs: as in `SeriesDataModule`; ``data_seed`` draws the series, too.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, *, num_variates: int = 8, num_steps: int = 2000, num_sources: int = 4, noise: float = 0.2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if min(num_variates, num_steps, num_sources) < 1:
            raise ValueError(
                f"num_variates, num_steps and num_sources must be at least 1, got {num_variates}, {num_steps} and "
                f"{num_sources}"
            )
        if noise < 0.0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.num_variates = num_variates
        self.num_steps = num_steps
        self.num_sources = num_sources
        self.noise = noise

    def series(self) -> Tensor:
        """Returns the series."""
        time = torch.arange(self.num_steps)
        sources, variates = torch.arange(self.num_sources), torch.arange(self.num_variates)
        periods = 8.0 * 8.0 ** uniform(sample_keys(self.data_seed, 2, sources))  # [K]
        keys = sample_keys(self.data_seed, 3, variates)
        phases = 2.0 * math.pi * uniform(keys, self.num_sources)  # [V, K]
        weights = normal(keys, self.num_sources, stream=1) * (2.0 / self.num_sources) ** 0.5
        waves = (2.0 * math.pi * time.view(-1, 1, 1) / periods + phases).sin()  # [S, V, K]
        noise = normal(sample_keys(self.data_seed, 4, time), self.num_variates)  # [S, V]
        return (weights * waves).sum(-1) + self.noise * noise


class SeriesFile(SeriesDataModule):
    """A series in a CSV file with a header line and one line per step, such as ETTh1.

    Args:
        path: the file, UTF-8.
        columns: names of the variates; by default all columns but those that hold text, such as dates.
        delimiter: between two fields.
        **kwargs: as in `SeriesDataModule`.

    Attributes:
        columns: names of the variates.

    Raises:
        ValueError: there is no such file or column, or a column has a field that is no number.
    """

    def __init__(self, path: str, *, columns: Sequence[str] | None = None, delimiter: str = ",", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        texts = read_csv(path, delimiter)
        numbers = {name: as_numbers(texts[name]) for name in columns or texts if name in texts}
        if absent := [name for name in columns or () if name not in texts]:
            raise ValueError(f"{path} has no column {absent[0]!r}; it has {', '.join(texts)}")
        found = {name: column for name, column in numbers.items() if columns or column is not None}
        for name, column in found.items():
            if column is None or not np.isfinite(column).all():
                raise ValueError(f"column {name!r} of {path} must hold a number in every row")
        if not found:
            raise ValueError(f"{path} has no column of numbers")
        self.columns = list(found)
        self._series = torch.from_numpy(np.stack(list(found.values()), 1))  # type: ignore[arg-type]

    def series(self) -> Tensor:
        """Returns the series."""
        return self._series
