"""The folder of a run: ``logs/<experiment>/<name>/``, the same for all processes of the run."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from leyden.cli.config import ConfigError, config_folder

__all__ = [
    "LOGS",
    "RUN_DIR_VARIABLE",
    "RunFolder",
    "experiment_name",
    "find_checkpoint",
    "newest_run",
    "requeued_run",
    "run_of_checkpoint",
]

LOGS = Path("logs")
RUN_DIR_VARIABLE = "LEYDEN_RUN_DIR"  # tells the processes that Lightning starts on this machine the folder of the first


class RunFolder:
    """Paths of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def label(self) -> str:
        """Name of the run in logs of many runs: its path below ``logs/``."""
        return self.path.relative_to(LOGS).as_posix() if self.path.is_relative_to(LOGS) else self.path.name

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """Where a resumed run goes on."""
        return self.checkpoints / "last.ckpt"

    def has_checkpoint(self) -> bool:
        """Whether something was saved that a new run would overwrite."""
        return any(self.checkpoints.glob("*.ckpt"))

    def discard_if_empty(self) -> None:
        """Removes the folder, and those above it up to ``logs/`` that are left empty, if there is no file in it."""
        if any(files for _, _, files in os.walk(self.path)):
            return
        with suppress(OSError):  # another process of the run is at the same
            for folder, _, _ in os.walk(self.path, topdown=False):
                os.rmdir(folder)
            above = self.path.parent
            while above.is_dir() and above != LOGS and not any(above.iterdir()):
                above.rmdir()
                above = above.parent

    @classmethod
    def new(cls, experiment: str, name: str | None, environment: Mapping[str, str], num_nodes: int = 1) -> "RunFolder":
        """Names and makes the folder of a new run.

        Every process of a run calls this and gets the same folder: by ``name``; by the environment variable that the
        first process set for those that it started; or from what the launcher gave to all of them.

        Args:
            experiment: see `experiment_name`.
            name: given name; the local time if None, which only a process that starts the others can use.
            environment: the environment variables.
            num_nodes: machines of the run.

        Raises:
            ConfigError: the folder has checkpoints already, or the processes could not agree on a name.
        """
        if environment.get("LOCAL_RANK", "0") != "0" and environment.get(RUN_DIR_VARIABLE):
            return cls(Path(environment[RUN_DIR_VARIABLE]))
        name = name or _launched_name(environment, num_nodes)
        if name is None:
            return cls(_make_unique(LOGS / experiment / time.strftime("%Y-%m-%d_%H-%M-%S")))
        run = cls(LOGS / experiment / name)
        if run.has_checkpoint():
            raise ConfigError(
                f"{run.path} has checkpoints of a run already; continue it with 'leyden fit --resume {run.path}', or "
                "choose another --name"
            )
        run.path.mkdir(parents=True, exist_ok=True)
        return run


def experiment_name(files: Sequence[Path]) -> str:
    """Names the experiment after the last of the ``-c`` files that is one.

    Its path below ``configs/experiment``, without ``.yaml``; of a run folder's ``config.yaml`` the experiment of that
    run; of a file outside of ``configs/`` its name; ``default`` if there is none.
    """
    configs = config_folder().resolve()
    for path in reversed([file.resolve() for file in files]):
        if path.is_relative_to(configs / "experiment"):
            return path.relative_to(configs / "experiment").with_suffix("").as_posix()
        if path.is_relative_to(LOGS.resolve()) and path.name == "config.yaml":
            return path.parent.parent.relative_to(LOGS.resolve()).as_posix()
        if not path.is_relative_to(configs):
            return path.stem
    return "default"


def requeued_run(experiment: str, name: str | None, environment: Mapping[str, str]) -> RunFolder | None:
    """The run that a SLURM job had begun before it was put back into the queue, if it had saved something.

    Args:
        experiment: see `experiment_name`.
        name: given name; None for the one that all processes of a job step find.
        environment: the environment variables.
    """
    if int(environment.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    name = name or _slurm_name(environment)
    run = RunFolder(LOGS / experiment / name) if name else None
    return run if run is not None and run.config.is_file() and run.last_checkpoint.is_file() else None


def run_of_checkpoint(path: str) -> RunFolder | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    run = RunFolder(Path(path).parent.parent)
    return run if Path(path).parent.name == "checkpoints" and run.config.is_file() else None


def find_checkpoint(name: str) -> Path:
    """A checkpoint by its path or by the folder of its run, of which it is the best, or else the last.

    Raises:
        ConfigError: there is none, or no telling which.
    """
    path = Path(name)
    if path.is_file():
        return path
    run = RunFolder(path)
    there = sorted(checkpoint for checkpoint in run.checkpoints.glob("[!.]*.ckpt") if checkpoint != run.last_checkpoint)
    best = run.checkpoints / "best.ckpt"
    if best in there or len(there) == 1:
        return best if best in there else there[0]
    if there:
        raise ConfigError(f"{name} has several checkpoints, name one: {', '.join(map(str, there))}")
    if run.last_checkpoint.is_file():
        return run.last_checkpoint
    raise ConfigError(f"{name} is no checkpoint and no run folder with checkpoints{newest_run()}")


def newest_run() -> str:
    """Advice: the run folder that was begun last; empty if there is none."""
    runs = sorted(path.parent for path in LOGS.rglob("config.yaml")) if LOGS.is_dir() else []
    return f"; the newest run is {max(runs, key=lambda path: path.stat().st_mtime)}" if runs else ""


def _launched_name(environment: Mapping[str, str], num_nodes: int) -> str | None:
    """A name that all processes of an outside launcher find; None where this process starts the others."""
    if name := _slurm_name(environment):
        return name
    if int(environment.get("WORLD_SIZE", 1)) == 1 and num_nodes == 1:
        return None
    one_node = environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE", "")
    name = _start_of_parent() if one_node else environment.get("TORCHELASTIC_RUN_ID", "none")
    if name in (None, "none"):
        raise ConfigError("the processes of this run cannot agree on the name of its folder: give one with --name")
    return name


def _slurm_name(environment: Mapping[str, str]) -> str | None:
    if int(environment.get("SLURM_NTASKS", 1)) == 1 or "SLURM_PROCID" not in environment:
        return None
    return f"slurm-{environment['SLURM_JOB_ID']}-{environment.get('SLURM_STEP_ID', '0')}"


def _start_of_parent() -> str | None:
    """Start of the process that launched this one, and its number."""
    parent = os.getppid()
    try:
        # the 22nd field, counted behind the program's name, which may hold anything
        ticks = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except OSError:  # no Linux
        return None
    started = int(boot.split()[1]) + ticks // os.sysconf("SC_CLK_TCK")
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(started)) + f"_{parent}"


def _make_unique(path: Path) -> Path:
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return candidate
