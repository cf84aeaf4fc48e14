"""One run of a comparison, and the process that makes several of them one after another.

A run lies in a folder of its own: that of an ordinary fit, and beside it ``sources.json`` (versions and digests of the
code that the run used), ``output.log`` and, when it has ended, ``result.json``. A run whose code has changed since is
made again; one that was interrupted goes on from its last checkpoint.
"""

import copy
import fcntl
import gc
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import leyden
from leyden.cli.config import Section, set_option

__all__ = ["Job", "end_with_parent", "finished_result", "known_result", "make_run", "output_to", "work"]

SOURCES, RESULT = "sources.json", "result.json"
PACKAGE = __name__.split(".")[0]
# code that decides how a run is started and shown, not what it computes
IGNORED = (f"{PACKAGE}.cli", f"{PACKAGE}.catalog", "__main__", "__mp_main__")


@dataclass(frozen=True)
class Job:
    """Runs of one config.

    Attributes:
        folder: has a folder per seed.
        tree: the merged config.
        files: the config files that were named.
        seeds: of the runs, in order.
        evaluate: function that evaluates the fit's checkpoint, and its arguments; None if the fit's own test does.
        stages: file of stages that are run in place of a fit; ``tree`` has ``options`` then, keys and values for all.
        stage: the only one of them whose metrics count.
    """

    folder: Path
    tree: Section
    files: list[Path]
    seeds: list[int]
    evaluate: tuple[str, dict[str, Any]] | None = None
    stages: Path | None = None
    stage: str | None = None

    def run_folder(self, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / f"seed-{seed}"


def finished_result(folder: Path) -> dict[str, Any] | None:
    """What a run has left, if it has ended and its code is still the same."""
    result = folder / RESULT
    return json.loads(result.read_text()) if result.is_file() and _same_code(folder) else None


def known_result(job: Job, seed: int) -> dict[str, Any] | None:
    """What is known of a run, evaluated as the job asks, if its code is still the same."""
    folder = job.run_folder(seed)
    fit = finished_result(folder)
    if fit is None or job.evaluate is None:
        return fit
    part = finished_result(_evaluation_folder(folder, job.evaluate))
    return None if part is None else fit | part


def work(job: Job, connection: Connection) -> None:
    """Makes the runs of a job; sends ``(seed, result)`` after each, or ``(seed, message)`` of its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    for seed in job.seeds:
        connection.send((seed, make_run(job, seed)))


def make_run(job: Job, seed: int) -> dict[str, Any] | str:
    """Makes a run, or the rest of it.

    Returns:
        The result, or the message of its error.
    """
    folder = job.run_folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / f"seed-{seed}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another comparison may share this run
        with output_to(folder / "output.log"):
            try:
                return (finished_result(folder) or _run(job, seed)) | _evaluate(job, seed)
            except (Exception, SystemExit) as error:
                from lightning.pytorch.utilities.exceptions import SIGTERMException

                if isinstance(error, SIGTERMException):  # no failure: the run is saved, and can go on
                    os._exit(128 + signal.SIGTERM)
                traceback.print_exc()
                return " ".join(str(error).split()) or type(error).__name__


def _run(job: Job, seed: int) -> dict[str, Any]:
    from leyden.cli.compared_fit import ComparedFit
    from leyden.core.replace_file import replace_file

    folder = job.run_folder(seed)
    if not _same_code(folder):
        for path in folder.iterdir():
            if path.name != "output.log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    gc.collect()
    if job.stages is not None:
        from leyden.cli.compared_stages import run_stages

        _write_sources(folder)
        found = run_stages(job.stages, job.tree["options"], folder, seed)
    else:
        found = ComparedFit(job.tree, job.files, folder, seed, write_sources=lambda: _write_sources(folder)).result
    result = found | {"seed": seed, "versions": _versions()}
    _write_sources(folder)  # some modules are imported in the middle of a fit
    with replace_file(folder / RESULT) as file:
        file.write(json.dumps(result, indent=1).encode())
    return result


def _evaluate(job: Job, seed: int) -> dict[str, Any]:
    """What differs from the fit's result."""
    if job.evaluate is None:
        return {}
    from leyden.cli.compared_stages import evaluate_fit
    from leyden.core.replace_file import replace_file

    folder = _evaluation_folder(job.run_folder(seed), job.evaluate)
    known = finished_result(folder)
    if known is not None:
        return known
    tree = copy.deepcopy(job.tree)
    set_option(tree, "seed_everything", str(seed))
    result = evaluate_fit(tree, job.files, job.run_folder(seed), *job.evaluate)
    _write_sources(folder)
    with replace_file(folder / RESULT) as file:
        file.write(json.dumps(result, indent=1).encode())
    return result


def _evaluation_folder(folder: Path, evaluate: tuple[str, dict[str, Any]]) -> Path:
    key = hashlib.sha256(json.dumps(evaluate, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return folder / f"evaluate-{key}"


# ---- code


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        PACKAGE: leyden.__version__,
    }


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return "missing"


def _write_sources(folder: Path) -> None:
    """Notes which files of the project and of the user are imported; installed packages are known by their version."""
    from leyden.core.replace_file import replace_file

    installed = (sys.prefix, sys.base_prefix)
    files = {
        module.__file__
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None)
        and not name.startswith(IGNORED)
        and name not in ("__main__", "__mp_main__")
    }
    own = sorted(str(file) for file in files if not str(file).startswith(installed))
    with replace_file(folder / SOURCES) as file:
        sources = {"versions": _versions(), "files": {path: _digest(path) for path in own}}
        file.write(json.dumps(sources, indent=1).encode())


def _same_code(folder: Path) -> bool:
    """Whether the code that the run began with is unchanged; also if it has not begun."""
    path = folder / SOURCES
    if not path.is_file():
        return True
    sources = json.loads(path.read_text())
    unchanged = all(_digest(path) == digest for path, digest in sources["files"].items())
    return unchanged and sources["versions"] == _versions()


# ---- process


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, and ends this one too."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends what this process prints, from Python or not, to a file."""
    kept = os.dup(1), os.dup(2)
    with open(path, "a") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, before in enumerate(kept, start=1):
                os.dup2(before, stream)
                os.close(before)
