"""One CSV file of metrics per run, which a resumed run continues as if it had never stopped."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from leyden.core.replace_file import replace_file

__all__ = ["CSVLogger"]

Row = dict[str, Any]


class CSVLogger(LightningCSVLogger):
    """Writes ``metrics.csv`` directly into a folder: the column ``step``, then the names in alphabetical order.

    An existing file is continued. After a resume, `rewind` drops the rows that were logged after the checkpoint, so
    that a killed and resumed run leaves the same bytes as one that was not killed. Hyperparameters are not written:
    the ``config.yaml`` of the run folder has them.

    Args:
        save_dir: the folder; the ``leyden`` command fills in the run folder if None.
        prefix: put before each name.
    """

    def __init__(self, save_dir: str | None = None, *, prefix: str = "") -> None:
        super().__init__(save_dir or ".", name=None, version="", prefix=prefix)
        self._save_dir_given = save_dir is not None
        self._file: _MetricsFile | None = None

    @property
    def log_dir(self) -> str:
        """The folder."""
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The file, opened on first use.

        Raises:
            ValueError: no ``save_dir`` was given, and the ``leyden`` command does not run.
        """
        if self._file is None:
            if not self._save_dir_given:
                raise ValueError("CSVLogger needs a save_dir; only the leyden command fills it in")
            self._file = _MetricsFile(Path(self.save_dir) / "metrics.csv")
        return self._file

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds a row; `save` writes it."""
        row = {f"{self._prefix}-{name}" if self._prefix else name: _plain(value) for name, value in metrics.items()}
        self.experiment.add(row | {"step": self.experiment.next_step if step is None else step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Does nothing: ``config.yaml`` has them."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows added since the last call."""
        self.experiment.flush()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows with this step number or a greater one.

        Args:
            step: number that the next row of a training step will have (of a resumed fit: the batches that ended in an
                optimizer step so far, which is ``global_step`` where there is one optimizer).
        """
        self.experiment.rewind(step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left."""
        if self._file is not None:
            self.save()


class _MetricsFile:
    """Rows of a CSV file whose columns may become more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []  # not written yet
        self.columns: list[str] = []
        self.next_step = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            text = path.read_text()
            whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
            if whole != text:
                with replace_file(path) as file:
                    file.write(whole.encode())
            rows = self._read()
            self.next_step = int(rows[-1]["step"]) + 1 if rows else 0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.next_step = row["step"] + 1

    def flush(self) -> None:
        if not self.rows:
            return
        columns = _columns([*self.rows, dict.fromkeys(self.columns)])
        if columns != self.columns:
            self._write([*self._read(), *self.rows], columns)
        else:
            with open(self.path, "a", newline="") as file:
                file.write(_to_csv(self.rows, columns))
        self.rows = []

    def rewind(self, step: int) -> None:
        self.flush()
        kept = [row for row in self._read() if int(row["step"]) < step]
        # columns that only dropped rows had go too: they come again in the step in which they came before
        self._write(kept, _columns([{name: value for name, value in row.items() if value != ""} for row in kept]))
        self.next_step = step

    def _read(self) -> list[Row]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            self.columns = list(reader.fieldnames or [])
        return rows

    def _write(self, rows: list[Row], columns: list[str]) -> None:
        with replace_file(self.path) as file:
            file.write((",".join(columns) + "\n" + _to_csv(rows, columns) if rows else "").encode())
        self.columns = columns if rows else []


def _columns(rows: list[Row]) -> list[str]:
    return ["step", *sorted({name for row in rows for name in row} - {"step"})]


def _to_csv(rows: list[Row], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
