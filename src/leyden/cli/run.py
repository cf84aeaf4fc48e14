"""``leyden run``: several fits, evaluations and calls, one after another, as one run that can be resumed.

The run's folder ``logs/<stages>/<name>/`` has ``stages.yaml`` (a copy of the file), ``stages.json`` (what has been
done) and a folder per stage, round and member, which is an ordinary run folder. A stage that has ended is not run again
as long as its config and what it takes are the same; one that was interrupted goes on from its last checkpoint.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.cli.commands import _one_line
from leyden.cli.config import ConfigError, Section, config_folder, find_config, plain, set_option
from leyden.cli.run_folder import LOGS, RunFolder
from leyden.cli.stage_config import MISSING, check_stages, network_section, stage_tree
from leyden.cli.stages import (
    COMPARISONS,
    FILE_KINDS,
    TRAINER_COMMANDS,
    Loop,
    Source,
    Stage,
    read_stages,
    stages_name,
)
from leyden.cli.wandb_runs import new_wandb_id

if TYPE_CHECKING:
    from leyden.cli.stage_task import Outcome, Task

__all__ = ["Run", "find_stages", "run"]

STAGES, RECORDS, LOCK = "stages.yaml", "stages.json", ".lock"


def run(argv: Sequence[str]) -> int:
    """Runs the stages of a file, or the rest of them.

    Returns:
        The exit code.
    """
    arguments = _parse(argv)
    running: list[str] = []  # the stage in which an error happens
    try:
        return Run(arguments, running).go()
    except KeyboardInterrupt:
        print("leyden: interrupted; 'leyden run --resume FOLDER' goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        where = "".join(f"{label}: " for label in running)
        print(f"leyden: error: {where}{_one_line(error, arguments.debug)}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="leyden run",
        description="Runs several fits, evaluations and calls as one run. Stages that have ended are not run again "
        "unless their config, or what they take, has changed.",
    )
    parser.add_argument("stages", nargs="?", help="stages file, or its name below configs/stages/")
    parser.add_argument("--name", help="of the run folder (default: the time of the start)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="run this stage and all after it again")
    parser.add_argument("--jobs", type=int, default=1, help="members of a stage at a time (default: 1)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all stages")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(list(argv))
    if arguments.stages is None and arguments.resume is None:
        parser.error("a stages file is needed, or --resume FOLDER")
    if arguments.name is not None and arguments.resume is not None:
        parser.error("--resume goes on in the folder of the run: it takes no --name")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    return arguments


class Run:
    """A run of stages.

    Args:
        arguments: of the command.
        running: gets the label of the stage that runs, for the message of an error.
        folder: of the run, whether there is one already or not; None for the command's own.

    Attributes:
        stages: the file.
        options: keys and values for all stages.
        records: what has been done, by label.

    Raises:
        ConfigError: the file, or the folder to be resumed, is none.
    """

    def __init__(self, arguments: Namespace, running: list[str], *, folder: Path | None = None) -> None:
        self.running = running
        self.jobs = arguments.jobs
        self.resumes = arguments.resume is not None or (folder is not None and (folder / RECORDS).is_file())
        self.first = arguments.first
        self.folder = folder or Path(arguments.resume or "")
        self.records: dict[str, Any] = {}
        self.labels: list[str] = []  # of what belongs to this run; there may be records of rounds that it has no more
        self.settings: list[str] = arguments.set
        if self.resumes:
            self._read(with_settings=folder is None)
        path = self.folder / STAGES if arguments.stages is None else find_stages(arguments.stages)
        self.stages = read_stages(path)
        self.options = [_option(setting) for setting in self.settings]
        if not self.resumes and folder is None:
            self.folder = LOGS / stages_name(path) / (arguments.name or time.strftime("%Y-%m-%d_%H-%M-%S"))

    def go(self) -> int:
        """Runs what has not been done.

        Returns:
            The exit code.

        Raises:
            Exception: whatever went wrong.
        """
        if self.first is not None:
            self._forget_from(self.first)
        check_stages(self.stages, self.options, self.folder)
        if not self.resumes:
            self._make_folder()
        with open(self.folder / LOCK, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is running the stages in {self.folder}") from None
            return self._go()

    def _go(self) -> int:
        if self.stages.path != self.folder / STAGES:
            self._replace(STAGES, self.stages.path.read_bytes())
        self._write()
        print(f"leyden: {self.folder}", file=sys.stderr)
        for loop in self.stages.loops:
            code = self._run_loop(loop)
            if code:
                return code
        self._print_summary()
        if not self.stages.measured:
            self._write_page()
        return 0

    # ---- stages

    def _run_loop(self, loop: Loop) -> int:
        round_ = 0
        while True:
            for stage in loop.stages:
                code = self._run_stage(loop, stage, round_)
                if code:
                    return code
            if round_ + 1 == loop.rounds or self._is_enough(loop, round_):
                loop.ended = round_
                return 0
            round_ += 1

    def _is_enough(self, loop: Loop, round_: int) -> bool:
        if loop.until is None:
            return False
        source, comparison, number = loop.until
        giver = self.stages.givers[source.stage][1]
        value = self.records[loop.folder(giver, round_)]["gives"][source.what]
        enough = COMPARISONS[comparison](value, number)
        outcome = "holds" if enough else "does not hold yet"
        print(f"leyden: {loop.name}, round {round_}: {source} {comparison} {number:g} {outcome}: it is {value:.6g}")
        return enough

    def _run_stage(self, loop: Loop, stage: Stage, round_: int) -> int:
        tasks: dict[str, Task] = {}
        for member in range(stage.members or 1):
            label = loop.folder(stage, round_) + (f"/member-{member}" if stage.members is not None else "")
            task = self._prepare(loop, stage, round_, member, label)
            self.labels.append(label)
            if task is None:
                print(f"leyden: {label}: finished before", file=sys.stderr)
            else:
                tasks[label] = task
        self._write()
        if self.jobs > 1 and len(tasks) > 1:
            return self._run_in_processes(tasks)
        from leyden.cli.stage_task import run_task

        for label, task in tasks.items():
            print(f"leyden: stage {label}", file=sys.stderr)
            self.running.append(label)
            outcome = run_task(task)
            self.running.pop()
            if outcome.code:
                return outcome.code
            self._finish(label, outcome)
        return 0

    def _prepare(self, loop: Loop, stage: Stage, round_: int, member: int, label: str) -> "Task | None":
        """Makes ready what is to be done for one member; None if it has been done."""
        from leyden.cli.stage_task import Task

        folder = self.folder / label
        key = self._key(loop, stage, round_, member)
        record = self.records.get(label)
        if record is None or record["key"] != key:
            if record is not None:
                del self.records[label]
                self._write()
            if folder.exists():
                shutil.rmtree(folder)
            self.records[label] = {"key": key, "state": "running", "id": new_wandb_id()}
        elif record["state"] == "finished":
            record["gives"] |= {name: record["metrics"][name] for name in stage.gives if name in record["metrics"]}
            if all(name in record["gives"] and self._is_there(folder, record, name) for name in stage.gives):
                return None
            record["state"] = "running"
        tree, files = stage_tree(self.stages, self.options, loop, stage, round_, member, self._take)
        if stage.run in TRAINER_COMMANDS:
            self._group(tree, label)
        return Task(folder, stage.run, tree, files, stage.gives, stage.function)

    def _finish(self, label: str, outcome: "Outcome") -> None:
        self.records[label] |= {
            "state": "finished",
            "gives": outcome.gives,
            "metrics": outcome.metrics,
            "seconds": round(outcome.seconds, 3),
        }
        self._write()

    def _run_in_processes(self, tasks: dict[str, "Task"]) -> int:
        from concurrent.futures import ProcessPoolExecutor, as_completed

        from leyden.cli.stage_task import follow_parent, run_task_quietly

        # for the processes: torch reads it when it is imported
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.jobs)))
        failures: dict[str, Exception] = {}
        code = 0
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.jobs, len(tasks)), context, initializer=follow_parent)
        try:
            labels = {pool.submit(run_task_quietly, task): label for label, task in tasks.items()}
            for future in as_completed(labels):
                label = labels[future]
                try:
                    outcome = future.result()
                except Exception as error:
                    failures[label] = error
                    continue
                code = code or outcome.code
                if not outcome.code:
                    self._finish(label, outcome)
                    print(f"leyden: {label}: {outcome.seconds:.1f} s", file=sys.stderr)
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()  # a stage can be killed at any moment
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        for label, failure in failures.items():
            log = self.folder / label / "output.log"
            raise ConfigError(f"{label}: {' '.join(str(failure).split())} ({log})") from failure
        return code

    # ---- what is handed over

    def _digest(self, source: Source, loop: Loop, round_: int, member: int) -> Any:
        return self._take(source, loop, round_, member, digest=True)

    def _take(self, source: Source, loop: Loop, round_: int, member: int, *, digest: bool = False) -> Any:
        if source.stage in ("round", "member"):
            return round_ if source.stage == "round" else member
        if source.before and round_ == 0:
            return MISSING
        giver_loop, giver = self.stages.givers[source.stage]
        giver_round = round_ - 1 if source.before else round_ if giver_loop is loop else giver_loop.last_round
        label = giver_loop.folder(giver, giver_round)
        if source.same_member:
            return self._value(giver_loop, giver, giver_round, member, f"{label}/member-{member}", source.what, digest)
        if giver.members is None:
            return self._value(giver_loop, giver, giver_round, 0, label, source.what, digest)
        return [
            self._value(giver_loop, giver, giver_round, number, f"{label}/member-{number}", source.what, digest)
            for number in range(giver.members)
        ]

    def _value(self, loop: Loop, giver: Stage, round_: int, member: int, label: str, what: str, digest: bool) -> Any:
        value = self.records[label]["gives"][what]
        if what not in FILE_KINDS:
            return value
        path = self.folder / label / value
        given = hashlib.sha256(path.read_bytes()).hexdigest() if digest else str(path)
        if what != "network":
            return given
        tree, _ = stage_tree(
            self.stages,
            self.options,
            loop,
            giver,
            round_,
            member,
            self._digest if digest else self._take,
        )
        return {
            "class_path": "leyden.models.pretrained",
            "init_args": {"network": network_section(tree), "weights": given},
        }

    def _key(self, loop: Loop, stage: Stage, round_: int, member: int) -> str:
        """Digest of the config and of the contents of what it takes."""
        tree, _ = stage_tree(
            self.stages,
            self.options,
            loop,
            stage,
            round_,
            member,
            self._digest,
        )
        content = json.dumps([stage.run, stage.function, plain(tree)], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _is_there(self, folder: Path, record: dict[str, Any], name: str) -> bool:
        return name not in FILE_KINDS or (folder / record["gives"][name]).is_file()

    def _group(self, tree: Section, label: str) -> None:
        """Makes the stage one W&B run of a group, which goes on when the stage does."""
        loggers = tree["trainer"].get("logger") if isinstance(tree.get("trainer"), Section) else None
        for logger in loggers if isinstance(loggers, list) else []:
            path = logger if isinstance(logger, str) else logger.get("class_path", "")
            if path.rsplit(".", 1)[-1] != "WandbLogger":
                continue
            run_label = RunFolder(self.folder).label
            identity = {"id": self.records[label]["id"], "resume": "allow"}
            for key, value in {"group": run_label, "name": f"{run_label}/{label}", **identity}.items():
                set_option(tree, f"trainer.logger.WandbLogger.{key}", value)

    # ---- the folder

    def _make_folder(self) -> None:
        if (self.folder / RECORDS).is_file():
            raise ConfigError(
                f"{self.folder} has a run already; continue it with 'leyden run --resume {self.folder}', or choose "
                "another --name"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self, *, with_settings: bool) -> None:
        path = self.folder / RECORDS
        if not path.is_file():
            raise ConfigError(f"--resume: {self.folder} is no folder of a run of stages, it has no {RECORDS}")
        content = json.loads(path.read_text())
        self.records = content["stages"]
        if with_settings:
            self.settings = [*content["set"], *self.settings]

    def _write(self) -> None:
        content = {"set": self.settings, "stages": self.records}
        self._replace(RECORDS, (json.dumps(content, indent=1) + "\n").encode())

    def _replace(self, name: str, content: bytes) -> None:
        from leyden.core.replace_file import replace_file

        with replace_file(self.folder / name) as file:
            file.write(content)

    def _write_page(self) -> None:
        """Writes the page of the whole run; what is wrong with a page is no fault of the run."""
        from leyden.cli.report.command import PAGE, write_report

        try:
            write_report([self.folder], self.folder / PAGE)
            print(f"leyden: {self.folder / PAGE}")
        except (ConfigError, OSError) as error:
            print(f"leyden: warning: no page: {' '.join(str(error).split())}", file=sys.stderr)

    def _forget_from(self, first: str) -> None:
        """Forgets a stage and all after it, in its rounds too."""
        loops = self.stages.loops
        number = next((n for n, loop in enumerate(loops) if first == loop.name or first in _names(loop)), None)
        if number is None:
            raise ConfigError(f"--from: there is no stage {first!r}; there are: {', '.join(self.stages.givers)}")
        own = _names(loops[number])
        before = own[: own.index(first)] if first in own else []
        kept = [loops[number].folder(self.stages.givers[name][1], 0) for name in before]
        kept += [name for loop in loops[:number] for name in {loop.name, *_names(loop)}]
        self.records = {
            label: record
            for label, record in self.records.items()
            if any(label == name or label.startswith(f"{name}/") for name in kept)
        }

    def _print_summary(self) -> None:
        for label in self.labels:
            record = self.records[label]
            shown = {name: value for name, value in record["gives"].items() if name not in FILE_KINDS}
            shown = shown or {k: v for k, v in record["metrics"].items() if k.startswith("test/")}
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"{label:<32} {record['seconds']:>7.1f} s  {numbers}".rstrip())


def _names(loop: Loop) -> list[str]:
    return [stage.name for stage in loop.stages]


def find_stages(name: str) -> Path:
    """Finds a stages file by its path or its name below ``configs/stages/``; any other config file as `find_config`."""
    for path in (Path(name), config_folder() / "stages" / name, config_folder() / "stages" / f"{name}.yaml"):
        if path.is_file():
            return path
    return find_config(name)


def _option(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {setting!r}")
    return key, value
