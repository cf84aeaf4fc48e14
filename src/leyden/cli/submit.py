"""``leyden submit``: a fit as a SLURM job, on one node or many."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.commands import in_one_line, load_tree, parse_arguments
from leyden.cli.config import ConfigError, config_folder
from leyden.cli.run_folder import LOGS, RunFolder, experiment_name

__all__ = ["named_run", "submit"]

DESCRIPTION = """\
Checks the config and submits `leyden fit` as a SLURM job, by scripts/slurm/train.sbatch, which is yours to change. What
is not named below goes to `leyden fit`. A job that is preempted, or whose time is over, saves, goes back into the queue
and continues its run with the same bits.

  leyden submit --nodes 2 --tasks-per-node 8 --sbatch gpus-per-node=8 --time 4:00:00 -c supervised/digits --name big
"""


def submit(argv: Sequence[str]) -> int:
    """Submits a fit.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden submit", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--tasks-per-node", type=int, default=1, help="processes on each: one per GPU that is used (default: 1)"
    )
    parser.add_argument("--time", help="time limit, such as 4:00:00; the partition's if left out")
    parser.add_argument("--partition", help="partition; SLURM's default one if left out")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="any other option of sbatch; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command instead of running it")
    arguments, rest = parser.parse_known_args(list(argv))
    return in_one_line(
        lambda: _submit(
            rest,
            nodes=arguments.nodes,
            tasks_per_node=arguments.tasks_per_node,
            options={"time": arguments.time, "partition": arguments.partition},
            further=arguments.sbatch,
            dry_run=arguments.dry_run,
        ),
        debug="--debug" in rest,
    )


def _submit(
    rest: list[str],
    *,
    nodes: int,
    tasks_per_node: int,
    options: dict[str, str | None],
    further: list[str],
    dry_run: bool,
) -> int:
    for name, value in (("--nodes", nodes), ("--tasks-per-node", tasks_per_node)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    for option in further:
        if not re.fullmatch(r"[a-z][a-z-]+(=.*)?", option):
            raise ConfigError(f"--sbatch takes KEY=VALUE, or KEY, where sbatch takes --KEY; got {option!r}")
    script = config_folder().parent / "scripts" / "slurm" / "train.sbatch"
    if not script.is_file():
        raise ConfigError(f"there is no {script}, which says how a run is started on your cluster")
    if not dry_run and shutil.which("sbatch") is None:
        raise ConfigError("sbatch is not on the PATH: jobs are submitted where SLURM's commands are")
    run, rest = named_run(rest)
    log = LOGS / "slurm" / f"{run.path.name}-%j.log"
    command = [
        "sbatch",
        "--parsable",
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--output={log}",
        *(f"--{name}={value}" for name, value in options.items() if value is not None),
        *(f"--{option}" for option in further),
        str(script),
        *rest,
    ]
    if dry_run:
        print(shlex.join(command))
        return 0
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)  # the job finds the command that submitted it
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"sbatch refused: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().split(";")[0]
    print(f"leyden: job {job}, run {run.path}, output {str(log).replace('%j', job)}")
    return 0


def named_run(rest: list[str]) -> tuple[RunFolder, list[str]]:
    """The folder of the run, and arguments that name it, when all is found to be well."""
    arguments = parse_arguments("fit", rest)
    if arguments.help is not None or arguments.print_config:
        raise ConfigError("help and configs are printed by leyden fit")
    tree, files = load_tree("fit", arguments)
    if arguments.resume is not None:
        return RunFolder(Path(arguments.resume)), rest
    from leyden.cli.checked_config import check_config

    check_config(tree, files)
    name = arguments.name or time.strftime("%Y-%m-%d_%H-%M-%S")
    run = RunFolder(LOGS / experiment_name(files) / name)
    if run.has_checkpoint():
        raise ConfigError(f"{run.path} has checkpoints of a run already; choose another --name, or --resume {run.path}")
    return run, rest if arguments.name else [*rest, f"--name={name}"]
