"""What the folder of a run holds, also of one that was killed."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leyden.cli.config import ConfigError
from leyden.cli.run_folder import LOGS

__all__ = ["SavedRun", "find_runs", "read_run"]

METRICS, CONFIG, STAGES = "metrics.csv", "config.yaml", "stages.json"
TIMING, SESSIONS, TEST = "record/timing.csv", "record/sessions.json", "record/test.json"

Curve = list[tuple[float, float]]


@dataclass
class SavedRun:
    """A run as its folder shows it.

    Attributes:
        folder: of the run.
        name: short name, different from those of the other runs on the page.
        curves: steps and values, by the name of the metric.
        config: the resolved config; None if there is none.
        sessions: environment and end of each start of the fit; see `leyden.callbacks.RunRecord`.
        throughput: steps and samples per second.
        test: what was recorded of the test; None if there was none.
        missing: one line for each thing that the page cannot show.
    """

    folder: Path
    name: str
    curves: dict[str, Curve] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    throughput: Curve = field(default_factory=list)
    test: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)

    def last(self, metric: str) -> float | None:
        """The last value of a metric."""
        curve = self.curves.get(metric)
        return curve[-1][1] if curve else None

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps that were logged or recorded."""
        recorded = [session["end"]["step"] for session in self.sessions if "end" in session]
        logged = [int(curve[-1][0]) + 1 for name, curve in self.curves.items() if not name.startswith("test/")]
        return max([*recorded, *logged], default=None)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Replaces the folder of a ``leyden run`` by those of its stages.

    Raises:
        ConfigError: one is no run folder.
    """
    runs: list[Path] = []
    for folder in folders:
        if (folder / STAGES).is_file():
            runs += _stages(folder)
        elif _is_run(folder):
            runs.append(folder)
        else:
            state = f"has no {CONFIG} or {METRICS}" if folder.is_dir() else "does not exist"
            newest = _newest()
            advice = f"; the newest run is {newest}" if newest else ""
            raise ConfigError(f"{folder} is no folder of a run: it {state}{advice}")
    return list(dict.fromkeys(runs))


def read_run(folder: Path, name: str) -> SavedRun:
    """Reads a run folder.

    Args:
        folder: the folder.
        name: for the page.

    Raises:
        ConfigError: ``metrics.csv`` is no log of metrics.
    """
    run = SavedRun(folder, name)
    run.curves = _read_metrics(folder / METRICS)
    if not run.curves:
        run.missing.append(f"no curves: there is no {METRICS} with numbers (was a CSVLogger among the loggers?)")
    run.config = _read(run, CONFIG, yaml.safe_load, "no config")
    sessions = _read(run, SESSIONS, json.loads, "no environment and no end of the fit (callback RunRecord)")
    run.sessions = sessions if isinstance(sessions, list) else []
    place = TEST if (folder / TEST).is_file() else f"test/{TEST}"  # of a `leyden test` that came later
    run.test = _read(run, place, json.loads, "no pictures of a test (callback RunRecord)")
    run.throughput = _throughput(folder / TIMING)
    if not run.throughput:
        run.missing.append(f"no throughput: {TIMING} is missing or has fewer than two rows")
    if run.sessions and "end" not in run.sessions[-1]:
        run.missing.append("the fit did not end: it runs still, or was killed")
    return run


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (METRICS, CONFIG, SESSIONS, TEST))


def _stages(folder: Path) -> list[Path]:
    try:
        records = json.loads((folder / STAGES).read_text())["stages"]
        labels = list(records)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / STAGES} cannot be read: {error}") from error
    found = [folder / label for label in labels if _is_run(folder / label)]  # a call leaves none
    if not found:
        raise ConfigError(f"{folder} has no stage with a run folder yet")
    return found


def _newest() -> Path | None:
    runs = [path.parent for path in LOGS.rglob(CONFIG)] if LOGS.is_dir() else []
    return max(runs, key=lambda path: path.stat().st_mtime, default=None)


def _read(run: SavedRun, name: str, parse: Any, missing: str) -> Any:
    path = run.folder / name
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        if missing:
            run.missing.append(f"{missing}: there is no {name}")
    except (ValueError, yaml.YAMLError) as error:
        run.missing.append(f"{name} cannot be read: {' '.join(str(error).split())[:200]}")
    return None


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, float]]:
    """Rows of a CSV file of numbers; the last one is left out if a kill has cut it."""
    if not path.is_file():
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(line for line in file if line.endswith("\n"))
        try:
            names = reader.fieldnames or []
            if names and not set(columns) <= set(names):
                raise ConfigError(f"{path} has no column {' or '.join(columns)}: it is no log of a run")
            for row in reader:
                yield {name: float(value) for name, value in row.items() if name and value}
        except (ValueError, csv.Error, TypeError) as error:
            raise ConfigError(f"{path} cannot be read, line {reader.line_num}: {error}") from error


def _read_metrics(path: Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in _rows(path, ["step"]):
        step = row.pop("step")
        if any(name.startswith("test/") for name in row):
            row.pop("epoch", None)  # the one after the last
        for name, value in row.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def _throughput(path: Path) -> Curve:
    """Samples per second between two rows of the same session."""
    curve: Curve = []
    before: dict[str, float] | None = None
    for row in _rows(path, ["session", "step", "seconds", "samples"]):
        if before is not None and row["session"] == before["session"] and row["seconds"] > before["seconds"]:
            speed = (row["samples"] - before["samples"]) / (row["seconds"] - before["seconds"])
            if math.isfinite(speed):
                curve.append((row["step"], speed))
        before = row
    return curve
