"""``leyden sweep``: runs a W&B sweep file on this machine, without an account.

The sweep's folder ``logs/sweep/<name>/`` has ``study.db`` (Optuna's: the values of all runs and what they gave), a
folder per run, which is an ordinary run folder, and in the end ``best.yaml``.
"""

import fcntl
import io
import multiprocessing
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leyden.cli.commands import Arguments, load_tree
from leyden.cli.config import ConfigError, Section, set_option
from leyden.cli.run_folder import LOGS, RunFolder
from leyden.cli.sweep_file import find_sweep, read_sweep
from leyden.cli.sweep_worker import SweepRun, serve
from leyden.cli.wandb_runs import is_wandb, new_wandb_id

if TYPE_CHECKING:
    from optuna.trial import Trial

    from leyden.cli.sweep_study import SweepStudy

__all__ = ["sweep"]

DEFAULT_RUNS = 20
MAX_FAILURES = 3  # with nothing else: then the sweep is wrong, not the values
MAX_CHECKED = 16  # choices of a parameter that are tried before the first run
BEST, LOCK = "best.yaml", ".lock"


def sweep(argv: Sequence[str]) -> int:
    """Makes the runs of a sweep, or the rest of them.

    Returns:
        The exit code: 1 if no run was complete.
    """
    arguments = _parse(argv)
    try:
        return _Sweep(arguments).go()
    except KeyboardInterrupt:
        print("leyden: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (ConfigError, OSError) as error:
        print(f"leyden: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="leyden sweep",
        description="Runs a W&B sweep file on this machine. The same command goes on where it was interrupted; with a "
        "greater --runs it adds to a sweep that has ended.",
    )
    parser.add_argument("sweep", help="sweep file, or its name below configs/sweep/")
    parser.add_argument("--runs", type=int, help=f"number of runs (default: run_cap, else the grid or {DEFAULT_RUNS})")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of values (default: 0)")
    parser.add_argument("--name", help="of the folder logs/sweep/NAME (default: that of the file)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all runs")
    arguments = parser.parse_args(list(argv))
    for name in ("runs", "jobs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


@dataclass
class _Worker:
    process: Any
    connection: Connection
    trial: "Trial | None" = None


class _Sweep:
    def __init__(self, arguments: Namespace) -> None:
        self.sweep = read_sweep(find_sweep(arguments.sweep))
        self.jobs: int = arguments.jobs
        self.folder = LOGS / "sweep" / (arguments.name or self.sweep.path.stem)
        self.seed: int = arguments.seed
        self.settings: list[str] = arguments.set
        self.options = [*self.sweep.arguments.options, *map(self._option, self.settings)]
        self.runs: int | None = arguments.runs or self.sweep.run_cap
        if self.runs is None and self.sweep.method != "grid":
            self.runs = DEFAULT_RUNS
        self.failures = 0
        self.study: SweepStudy

    def go(self) -> int:
        self._check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is running the sweep in {self.folder}") from None
            self.study = self._open()
            self._run_all()
            return self._report()

    def _option(self, setting: str) -> tuple[str, str]:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, got {setting!r}")
        if key in [parameter.key for parameter in self.sweep.parameters]:
            raise ConfigError(f"--set {key}: the sweep varies it")
        return key, value

    def _open(self) -> "SweepStudy":
        try:
            from leyden.cli.sweep_study import SweepStudy
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise ConfigError("leyden sweep needs Optuna: pip install 'leyden[sweep]'") from error
        return SweepStudy(self.folder, self.sweep, self.seed, self.settings)

    def _check(self) -> None:
        """Parses the configs of runs with the ends of all ranges, and with all choices."""
        from leyden.cli.lightning import run_command

        parameters = self.sweep.parameters
        for number in range(min(MAX_CHECKED, max(2, *(len(parameter.choices or ()) for parameter in parameters)))):
            values = {
                parameter.key: parameter.text(
                    parameter.choices[number % len(parameter.choices)]
                    if parameter.choices is not None
                    else (parameter.low, parameter.high)[number % 2]
                )
                for parameter in parameters
            }
            tree, files = self._load(values)
            try:
                with redirect_stdout(io.StringIO()):
                    run_command("fit", tree, Arguments(print_config=True), files)
            except ConfigError as error:
                shown = ", ".join(f"{key}={value}" for key, value in values.items())
                raise ConfigError(f"{self.sweep.path}: with {shown}: {error}") from error

    # ---- runs

    def _load(self, values: dict[str, str]) -> tuple[Section, list[Path]]:
        """Merges the config of a run."""
        options = [*self.options, *values.items()]
        tree, files = load_tree("fit", replace(self.sweep.arguments, options=options))
        callbacks = tree["trainer"].get("callbacks")
        if isinstance(callbacks, list):
            callbacks[:] = [item for item in callbacks if not _path(item).endswith("ProgressBar")]
        set_option(tree, "trainer.enable_progress_bar", "false")
        if not self.sweep.metric.startswith("test/"):
            set_option(tree, "test_after_fit", "false")  # who looks at the test while choosing has no test any more
        if tree["trainer"].get("devices") in (None, "auto"):
            set_option(tree, "trainer.devices", "1")
        if str(tree["trainer"]["devices"]) != "1" or str(tree["trainer"].get("num_nodes", 1)) != "1":
            raise ConfigError("a sweep makes each run on one device: --set trainer.devices=1")
        return tree, files

    def _run_of(self, trial: "Trial") -> SweepRun:
        folder = self.folder / f"run-{trial.number:03d}"
        tree, files = self._load(self.study.typed(trial))
        loggers = tree["trainer"].get("logger")
        if isinstance(loggers, list) and any(is_wandb(_path(logger)) for logger in loggers):
            if "wandb_id" not in trial.user_attrs:
                trial.set_user_attr("wandb_id", new_wandb_id())
            label = RunFolder(self.folder).label
            identity = {"id": trial.user_attrs["wandb_id"], "resume": "allow", "name": f"{label}/{folder.name}"}
            for key, value in {"group": label, "job_type": "sweep", **identity}.items():
                set_option(tree, f"trainer.logger.WandbLogger.{key}", value)
        return SweepRun(folder, tree, files, self.sweep.metric, self.sweep.mode)

    def _run_all(self) -> None:
        if self.jobs > 1:  # for the processes: torch reads it when it is imported
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.jobs)))
        waiting = self.study.interrupted()
        workers: list[_Worker] = []
        try:
            while True:
                busy = [worker for worker in workers if worker.trial is not None]
                while len(busy) < self.jobs and (trial := waiting.pop(0) if waiting else self._next()) is not None:
                    worker = next((worker for worker in workers if worker.trial is None), None)
                    if worker is None:
                        worker = _start()
                        workers.append(worker)
                    worker.trial = trial
                    worker.connection.send(self._run_of(trial))
                    busy.append(worker)
                if not busy:
                    return
                for connection in cast(list[Connection], wait([worker.connection for worker in busy])):
                    worker = next(worker for worker in busy if worker.connection is connection)
                    if not self._hear(worker):
                        workers.remove(worker)
        finally:
            for worker in workers:
                worker.process.kill()  # a run can be killed at any moment
                worker.process.join()

    def _next(self) -> "Trial | None":
        """The next run, if there is to be one more."""
        states = [trial.state.name for trial in self.study.trials]
        begun = sum(state != "FAIL" for state in states) + self.failures  # failures of before are made up for
        if self.runs is not None and begun >= self.runs:
            return None
        if self.failures >= MAX_FAILURES and not {"COMPLETE", "PRUNED"} & set(states):
            raise ConfigError(f"{self.failures} runs have failed and none has ended")
        return None if self.study.has_reached_target() else self.study.ask()

    def _hear(self, worker: _Worker) -> bool:
        """Takes a message of a worker.

        Returns:
            Whether the worker lives.
        """
        trial = worker.trial
        assert trial is not None
        try:
            kind, *message = worker.connection.recv()
        except EOFError:
            worker.process.join()
            self._end(trial, "failed", None, f"its process ended with code {worker.process.exitcode}", None)
            return False
        if kind == "value":
            worker.connection.send(self.study.should_stop(trial, *message))
        else:
            worker.trial = None
            self._end(trial, *message)
        return True

    def _end(self, trial: "Trial", outcome: str, value: float | None, message: str, seconds: float | None) -> None:
        facts = {"message": message} if seconds is None else {"message": message, "seconds": round(seconds, 1)}
        self.study.tell(trial, outcome, value, **facts)
        if outcome == "not logged":
            raise ConfigError(message)
        values = ", ".join(f"{key}={text}" for key, text in self.study.typed(trial).items())
        if outcome == "failed":
            self.failures += 1
            log = self.folder / f"run-{trial.number:03d}" / "output.log"
            print(f"leyden: error: run {trial.number} ({values}): {message} ({log})", file=sys.stderr)
            return
        shown = f"{self.sweep.metric} {value:.6g}" if value is not None else f"{outcome}: {message}"
        print(f"run {trial.number}: {shown}, {seconds:.1f} s ({values})", flush=True)

    # ---- the end

    def _report(self) -> int:
        from leyden.cli.sweep_report import print_runs, write_best

        print_runs(self.study)
        best = self.study.best()
        if best is None:
            print("leyden: error: no run is complete", file=sys.stderr)
            return 1
        path = self.folder / BEST
        write_best(path, self.study, best, self.folder / f"run-{best.number:03d}" / "config.yaml")
        print(f"leyden: the best config: leyden fit -c {path}")
        return 0


def _path(item: Section | str) -> str:
    return item if isinstance(item, str) else item["class_path"]


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    theirs.close()
    return _Worker(process, ours)
