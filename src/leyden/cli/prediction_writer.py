"""Predictions as rows of a table, written batch by batch, in the order of the data on any number of processes."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from leyden.cli.lightning import LeydenCLI, say
from leyden.core.distributed import rank, world_size
from leyden.core.replace_file import replace_file

__all__ = ["PredictCLI", "PredictionWriter", "prediction_columns"]

ROW_GROUP = 10_000  # rows of a Parquet file that are compressed together
Columns = Mapping[str, Sequence[Any] | np.ndarray]


class PredictCLI(LeydenCLI):
    """Writes what the model predicts.

    Args:
        form: ``csv``, ``parquet`` or ``pt``.
        output: the file; ``predictions.<form>`` in the run folder if None.
        *args: as in `LeydenCLI`.
    """

    def __init__(self, form: str, output: Path | None, *args: Any) -> None:
        self.form = form
        self.output = output
        super().__init__(*args)

    def instantiate_classes(self) -> None:
        """Makes all objects, and the writer."""
        super().instantiate_classes()
        assert self.run is not None
        self.output = self.output or self.run.path / f"predictions.{self.form}"
        if self.form != "pt":
            writer = PredictionWriter(self.output, self.form)
            self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Writes the tensors of all processes, if they were asked for."""
        assert self.output is not None
        if self.form == "pt":
            parts: list[Any] = [self.trainer.predict_loop.predictions]
            if world_size() > 1:
                parts = [None] * world_size()
                dist.all_gather_object(parts, self.trainer.predict_loop.predictions)
            if self.trainer.is_global_zero:
                with replace_file(self.output) as file:
                    torch.save(_joined([batch for part in parts for batch in part]), file)
        say(f"predictions: {self.output}")


class PredictionWriter(Callback):
    """Writes one row per sample; the file is there once all are written.

    Lightning's own base for this asks the loader's sampler for the numbers of the samples; here the batch has them.

    Args:
        path: the file.
        form: ``csv`` or ``parquet``.

    Raises:
        ImportError: there is no pyarrow for Parquet.
    """

    def __init__(self, path: Path, form: str) -> None:
        if form == "parquet":
            _require_pyarrow()
        self.path = path
        self.make = ParquetTable if form == "parquet" else CSVTable
        self._stack = ExitStack()
        self._table: Table | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the file."""
        if rank() == 0:
            self._table = self.make(self._stack.enter_context(replace_file(self.path)))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the rows of a batch, after those of the processes before this one."""
        parts: list[Any] = [prediction_columns(outputs, batch, getattr(trainer, "datamodule", None))]
        if world_size() > 1:
            gathered = [None] * world_size() if rank() == 0 else None
            dist.gather_object(parts[0], gathered)
            parts = gathered or []
        for part in parts:
            assert self._table is not None
            self._table.write(part)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the file its name."""
        if self._table is not None:
            self._table.close()
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes what was written, and leaves a file that was there before."""
        self._stack.__exit__(type(exception), exception, exception.__traceback__)


def prediction_columns(prediction: Any, batch: Any, datamodule: Any) -> Columns:
    """Columns of a batch: ``index``, ``source`` and ``target`` where there are, then what was predicted.

    ``output`` becomes ``prediction`` (of data with classes the likeliest, and ``probability_<class>`` of each); any
    other tensor keeps its name, with the number of the column if it has several.

    Args:
        prediction: what ``predict_step`` returned: ``[N]`` or ``[N, K]`` by name.
        batch: what it was given.
        datamodule: knows the ``class_names``, the mean and spread of a standardised target, and the ``sources`` of the
            data set to predict (names of its samples, such as paths), where there are any.

    Raises:
        MisconfigurationException: that is not what it returned, or it does not say whose it is.
    """
    known: Mapping[str, Any] = batch if isinstance(batch, Mapping) else {}
    if not isinstance(prediction, Mapping) or not isinstance(prediction.get("index", known.get("index")), Tensor):
        raise MisconfigurationException(
            "predict_step must return a dict of tensors, and it or the batch must have 'index', which says whose row "
            f"it is; got {type(prediction).__name__}: --to pt writes anything"
        )
    index = _array(prediction.get("index", known.get("index")))
    columns: dict[str, Any] = {"index": index}
    sources = _sources(datamodule)
    if sources is not None:
        columns["source"] = [str(sources[i]) if isinstance(sources[i], Path) else sources[i] for i in index.tolist()]
    elif "source" in known:
        columns["source"] = known["source"] if isinstance(known["source"], list) else _array(known["source"])
    names = list(getattr(datamodule, "class_names", None) or [])
    num_classes = getattr(datamodule, "num_classes", None)
    in_units = _Units(datamodule)
    if "target" in known and known["target"].squeeze(-1).ndim == 1:
        target = _array(known["target"].squeeze(-1))
        columns["target"] = _named(target, names) if num_classes else in_units(target)
    for key, value in prediction.items():
        if key == "index":
            continue
        array = _array(value)
        if array.ndim not in (1, 2):
            raise MisconfigurationException(
                f"{key!r} is {list(value.shape)} for a batch, which is no row per sample: --to pt writes anything"
            )
        if key == "output" and num_classes and array.ndim == 2:
            probability = _array(value.float().softmax(-1))
            columns["prediction"] = _named(probability.argmax(-1), names)
            for number in range(array.shape[1]):
                name = names[number] if number < len(names) else number
                columns[f"probability_{name}"] = probability[:, number]
            continue
        name, array = ("prediction", in_units(array)) if key == "output" else (key, array)
        single = array.ndim == 1 or array.shape[1] == 1
        columns |= {name: array.reshape(len(array))} if single else {f"{name}_{i}": c for i, c in enumerate(array.T)}
    return columns


class Table(Protocol):
    """A table that grows."""

    def write(self, columns: Columns) -> None:
        """Adds rows."""

    def close(self) -> None:
        """Writes what is left; the file stays open."""


class CSVTable:
    """A CSV file with a header line; a float has as many digits as it takes to read the same one.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._has_header = False

    def write(self, columns: Columns) -> None:
        """Adds rows."""
        if not self._has_header:
            self._rows.writerow(columns)
            self._has_header = True
        self._rows.writerows(zip(*columns.values(), strict=True))

    def close(self) -> None:
        """Writes what is left."""
        self._text.detach()


class ParquetTable:
    """A Parquet file.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None
        self._pending: list[Any] = []

    def write(self, columns: Columns) -> None:
        """Adds rows."""
        self._pending.append(import_module("pyarrow").table(dict(columns)))
        if sum(map(len, self._pending)) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes what is left."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            table = import_module("pyarrow").concat_tables(self._pending)
            if self._writer is None:
                self._writer = import_module("pyarrow.parquet").ParquetWriter(self._file, table.schema)
            self._writer.write_table(table)
            self._pending = []


class _Units:
    """Turns standardised numbers into those of the data."""

    def __init__(self, datamodule: Any) -> None:
        self.mean = getattr(datamodule, "target_mean", 0.0)
        self.std = getattr(datamodule, "target_std", 1.0)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array if self.std == 1.0 and self.mean == 0.0 else array * self.std + self.mean


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _named(numbers: np.ndarray, names: list[str]) -> Sequence[Any] | np.ndarray:
    if not names or numbers.dtype.kind not in "iu":
        return numbers
    return [names[number] if 0 <= number < len(names) else "" for number in numbers.tolist()]


def _sources(datamodule: Any) -> Sequence[Any] | None:
    return getattr(datamodule.dataset("predict"), "sources", None) if hasattr(datamodule, "dataset") else None


def _joined(batches: list[Any]) -> Any:
    """Predictions that are batches as one, in the order of ``index``; any others as they are."""
    if not all(isinstance(batch, dict) and isinstance(batch.get("index"), Tensor) for batch in batches) or not batches:
        return batches
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return {key: torch.cat([batch[key] for batch in batches])[order] for key in batches[0]}


def _require_pyarrow() -> None:
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError('pyarrow is not installed: pip install "leyden[parquet]"') from error
