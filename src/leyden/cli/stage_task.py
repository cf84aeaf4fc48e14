"""One stage of a run in its own folder: an ordinary run of ``leyden fit`` and its kin, or a call of a function."""

import csv
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from leyden.cli.commands import Arguments
from leyden.cli.config import ConfigError, Section
from leyden.cli.lightning import LeydenCLI
from leyden.cli.stages import FILE_KINDS
from leyden.cli.trainless_stages import (
    call_function,
    combine_checkpoints,
    curate_dataset,
    evaluate_checkpoint,
)
from leyden.core.batch import Batch
from leyden.core.replace_file import replace_file
from leyden.data.written import pack_tensors
from leyden.plugins.checkpoint_io import AtomicCheckpointIO
from leyden.weights.files import pack_weights

__all__ = ["Outcome", "Task", "follow_parent", "run_task", "run_task_quietly"]


@dataclass
class Task:
    """What is to be run.

    Attributes:
        folder: of the stage.
        command: ``fit``, ``validate``, ``test``, ``predict``, ``combine``, ``curate``, ``evaluate`` or ``call``.
        tree: the merged config (with the arguments, if it has such), or the arguments of a called function.
        files: the config files that were named.
        gives: names of what it gives.
        function: import path of the function.
    """

    folder: Path
    command: str
    tree: Section
    files: list[Path]
    gives: list[str]
    function: str | None = None


@dataclass
class Outcome:
    """What a stage has left.

    Attributes:
        code: exit code; the others are there if it is 0.
        gives: paths below the stage's folder, or numbers, by name.
        metrics: all that were logged last.
        seconds: that it took, without the time before it was interrupted.
    """

    code: int
    gives: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class StageCLI(LeydenCLI):
    """Runs one of the Trainer's commands in a given folder, or goes on there.

    Args:
        task: what is to be run.

    Attributes:
        metrics: that were logged last.
        predictions: batches of a ``predict``.
        best: path of the checkpoint whose weights were tested, or else of the last one.
    """

    def __init__(self, task: Task) -> None:
        self.metrics: dict[str, float] = {}
        self.predictions: list[Batch] = []
        self.best: Path | None = None
        super().__init__(task.command, task.tree, Arguments(resume=str(task.folder)), task.files)

    def after_fit(self) -> None:
        """Notes the metrics before and after the test."""
        self._note_metrics()
        super().after_fit()
        self._note_metrics()
        assert self.run is not None
        paths = [getattr(callback, "best_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        self.best = next(
            (Path(path) for path in [*paths, self.run.last_checkpoint] if path and Path(path).is_file()), None
        )

    def after_validate(self) -> None:
        """Notes the metrics."""
        self._note_metrics()

    def after_test(self) -> None:
        """Notes the metrics."""
        self._note_metrics()

    def after_predict(self) -> None:
        """Notes the predictions."""
        self.predictions = cast(list[Batch], self.trainer.predict_loop.predictions)

    def _note_metrics(self) -> None:
        self.metrics |= {name: float(value) for name, value in self.trainer.callback_metrics.items()}


def run_task(task: Task) -> Outcome:
    """Runs a stage, or goes on with it.

    Raises:
        ConfigError: it does not give what it should.
        Exception: whatever went wrong in it.
    """
    started = time.monotonic()
    task.folder.mkdir(parents=True, exist_ok=True)
    best: Path | None = None
    metrics: dict[str, float] = {}
    gives: dict[str, Any] = {}
    match task.command:
        case "call":
            gives = call_function(task)
        case "combine":
            best, metrics = combine_checkpoints(task)
        case "curate":
            curated = curate_dataset(task)
            gives = {name: curated[name] for name in task.gives}
        case "evaluate":
            metrics = evaluate_checkpoint(task)
        case _:
            try:
                cli = StageCLI(task)
            except SIGTERMException:
                return Outcome(128 + signal.SIGTERM)
            except SystemExit as stop:
                if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's own end after Ctrl-C
                    return Outcome(128 + signal.SIGINT)
                raise
            best, metrics = cli.best, cli.metrics
            if task.command == "fit":  # the log has what was logged before an interruption too
                metrics |= _logged(task.folder / "metrics.csv")
            if "dataset" in task.gives:
                gives = {"dataset": _write_predictions(task, cli.predictions)}
    gives |= {name: _give(name, task, best, metrics) for name in task.gives if name not in gives}
    return Outcome(0, gives, metrics, time.monotonic() - started)


def run_task_quietly(task: Task) -> Outcome:
    """Runs a stage in a process of its own, whose output goes to ``output.log`` in the stage's folder."""
    task.folder.mkdir(parents=True, exist_ok=True)
    with open(task.folder / "output.log", "a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    return run_task(task)


def follow_parent() -> None:
    """Lets this process end when the one that started it does; Ctrl-C reaches both, the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _give(name: str, task: Task, best: Path | None, metrics: dict[str, float]) -> Any:
    if name not in FILE_KINDS:
        if name not in metrics:
            raise ConfigError(f"it logged no {name!r}; it logged: {', '.join(sorted(metrics)) or 'nothing'}")
        return metrics[name]
    if best is None:
        raise ConfigError(f"it gives {name}, but saved no checkpoint: keep LastCheckpoint among its callbacks")
    if name == "checkpoint":
        return best.resolve().relative_to(task.folder.resolve()).as_posix()
    state = AtomicCheckpointIO().load_checkpoint(best)["state_dict"]
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not weights:
        raise ConfigError(f"it gives {name}, but its checkpoint has no weights of a 'network'")
    with replace_file(task.folder / "weights.safetensors") as file:
        file.write(pack_weights(weights))
    return "weights.safetensors"


def _write_predictions(task: Task, batches: list[Batch]) -> str:
    if not batches or not all(isinstance(batch, dict) for batch in batches):
        raise ConfigError("it gives a dataset, but its predict_step returned no batches")
    tensors = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    with replace_file(task.folder / "dataset.safetensors") as file:
        file.write(pack_tensors(tensors))
    return "dataset.safetensors"


def _logged(path: Path) -> dict[str, float]:
    """Last value of each metric in the log."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return {name: value for row in rows for name, value in row.items() if name not in ("step", "epoch")}


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
