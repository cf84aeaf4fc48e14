"""The runs of a comparison as SLURM jobs: one array, each job makes one run in its folder on the shared disk."""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from typing import Any

from leyden.cli.compare_worker import Job, make_run
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import LOGS

__all__ = ["check_slurm", "run_on_slurm"]

COMMANDS = ("sbatch", "srun", "squeue", "scancel")  # srun: submitit knows SLURM by it
# what the command itself decides, or relies on: one array, one process per run, what sbatch prints
OURS = ("array", "error", "nodes", "ntasks", "ntasks_per_node", "output", "parsable", "quiet", "test_only", "wait")
PAUSE = 10.0  # seconds between two looks at the queue
PATIENCE = 6  # looks at the disk after a job has left the queue: a shared disk shows files late


def check_slurm(options: Sequence[str]) -> None:
    """Checks that jobs can be submitted from here, and the form of the options.

    Raises:
        ConfigError: something is missing or wrong.
    """
    if find_spec("submitit") is None:
        raise ConfigError("--slurm needs submitit: pip install 'leyden[slurm]'")
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        raise ConfigError(f"--slurm needs the commands of SLURM; not on the PATH: {', '.join(missing)}")
    _parameters(options)


def run_on_slurm(
    runs: Sequence[tuple[Job, int]],
    options: Sequence[str],
    num_jobs: int,
    note: Callable[[int, dict[str, Any] | str], None],
) -> None:
    """Submits runs and waits for their ends. Jobs that have not ended are cancelled if anything interrupts it.

    Args:
        runs: job of a comparison, and seed.
        options: ``KEY=VALUE`` or ``KEY``, of ``sbatch``.
        num_jobs: how many may run at a time.
        note: called with the number of a run and its result, or the message of its error.

    Raises:
        ConfigError: ``sbatch`` refused; nothing was submitted.
    """
    if not runs:
        return
    jobs = _submit(runs, options, num_jobs)
    many = "runs" if len(jobs) > 1 else "run"
    print(f"leyden: {len(jobs)} {many} submitted to SLURM as job {jobs[0].job_id.split('_')[0]}", flush=True)
    left = dict(enumerate(jobs))
    absent: Counter[int] = Counter()
    shown = ""
    try:
        while left:
            states = _queue()
            for number, job in list(left.items()):
                if job.paths.result_pickle.exists():
                    del left[number]
                    note(number, _outcome(job))
                elif states is not None and job.job_id not in states:
                    absent[number] += 1
                    if absent[number] >= PATIENCE:
                        del left[number]
                        note(number, f"its SLURM job {job.job_id} ended without a result: {_log(job)}")
            if states is not None:
                counts = Counter(states[job.job_id].lower() for job in left.values() if job.job_id in states)
                now = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
                if now and now != shown:
                    print(f"leyden: SLURM: {now}", flush=True)
                    shown = now
            if left:
                time.sleep(PAUSE)
    finally:
        if left:
            subprocess.run(["scancel", *(job.job_id for job in left.values())], check=False)


def _submit(runs: Sequence[tuple[Job, int]], options: Sequence[str], num_jobs: int) -> list[Any]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    folder = LOGS / "compare" / "slurm" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}"
    # exec: SLURM's signals reach the run, and not a shell that leaves it behind
    executor = SlurmExecutor(folder / "%j", python=f"exec {shlex.quote(sys.executable)}")
    executor.update_parameters(
        job_name="leyden",
        time=None,  # the partition's, not submitit's 5 minutes
        wckey=None,  # the user's, not submitit's
        array_parallelism=num_jobs,
        stderr_to_stdout=True,
        use_srun=False,  # a run is one process
        setup=[
            "unset SLURM_NTASKS SLURM_NTASKS_PER_NODE  # Lightning would take the process for one that srun started",
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE}",
        ],
        additional_parameters=_parameters(options),
    )
    try:
        with redirect_stderr(io.StringIO()):  # it prints what it raises
            return executor.submit_array([partial(_work, job, seed, list(sys.path)) for job, seed in runs])
    except FailedJobError as error:
        shutil.rmtree(folder)
        raise ConfigError(f"--slurm: {error}") from error


def _parameters(options: Sequence[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        name = key.replace("-", "_")
        if not re.fullmatch("[a-z][a-z_0-9]+", name):
            raise ConfigError(f"--slurm takes KEY=VALUE, or KEY, where sbatch takes --KEY; got {option!r}")
        if name in OURS:
            raise ConfigError(f"--slurm: {key} cannot be set: each run is one process, and one job of an array")
        parameters[name] = value if equals else True
    return parameters


def _work(job: Job, seed: int, path: list[str]) -> dict[str, Any] | str:
    # time limit, scancel, preemption: a run can be killed at any moment, and Lightning would call it a failure
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    sys.path[:] = path  # the user's own modules
    return make_run(job, seed)


def _queue() -> dict[str, str] | None:
    """States of the user's jobs that have not ended; None if SLURM does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return {number: state for number, _, state in lines}


def _outcome(job: Any) -> dict[str, Any] | str:
    try:
        return job.result()
    except Exception:  # outside of the run: it could not be loaded
        return f"its SLURM job {job.job_id} failed: {_log(job)}"


def _log(job: Any) -> str:
    """What SLURM said of a job's end, if it said something, and where the job's output is."""
    path = job.paths.stdout
    text = path.read_text(errors="replace") if path.is_file() else ""
    said = re.findall(r"^slurmstepd.*?: error: [* ]*(.*?)[* ]*$", text, re.M)[-1:]
    return ", ".join([*said, os.path.relpath(path)])
