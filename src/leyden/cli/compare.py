"""``leyden compare``: the same seeds and data for a baseline and methods, and what the difference is."""

import json
import multiprocessing
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from leyden.cli.compare_slurm import check_slurm, run_on_slurm
from leyden.cli.compare_worker import Job, known_result, work
from leyden.cli.compared_arms import load_arm, source_digest
from leyden.cli.comparison import Arm, check_data, make_report, print_report
from leyden.cli.config import ConfigError
from leyden.cli.run_folder import LOGS
from leyden.metrics.direction import default_mode

__all__ = ["compare", "source_digest"]


def compare(argv: Sequence[str]) -> int:
    """Runs a comparison, or the rest of it, and reports.

    Returns:
        The exit code: 1 if a run failed.
    """
    arguments = _parse(argv)
    try:
        return _compare(arguments)
    except KeyboardInterrupt:
        print("leyden: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    except (ConfigError, OSError) as error:
        print(f"leyden: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="leyden compare",
        description="Trains and tests a baseline and methods in the same seeds, and reports the paired differences. "
        "Each is a config of leyden fit, a config with 'evaluate' (a function of the checkpoint of its base, which "
        "trains nothing), or a file of leyden run (FILE, or FILE:STAGE for the metrics of one stage). Finished runs "
        "are kept: the same command goes on where it was interrupted.",
    )
    parser.add_argument("baseline", help="config file, as -c of leyden fit takes it; 'default' is default.yaml")
    parser.add_argument("methods", nargs="+", metavar="method", help="config files to be compared with it")
    parser.add_argument("--seeds", type=_positive, default=5, help="number of seeds: 0, 1, ... (default: 5)")
    parser.add_argument("--metric", default="test/accuracy", help="what is compared (default: test/accuracy)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less is better (default: by the name)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for all configs")
    parser.add_argument("--jobs", type=_positive, help="runs at a time (default: 1; on SLURM: all)")
    parser.add_argument(
        "--slurm", nargs="*", action="extend", metavar="KEY=VALUE", help="each run as a SLURM job; options of sbatch"
    )
    parser.add_argument("--name", help="of the report's folder logs/compare/NAME (default: from the configs)")
    parser.add_argument("--wandb", metavar="PROJECT", help="put the runs into W&B, as one group, when all have ended")
    parser.add_argument("--record", metavar="SLUG", help="store the report as evidence of this name")
    return parser.parse_args(list(argv))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _compare(arguments: Namespace) -> int:
    names = [arguments.baseline, *arguments.methods]
    on_slurm = arguments.slurm is not None
    if on_slurm:
        check_slurm(arguments.slurm)
    if len(set(names)) < len(names):
        raise ConfigError("a config is named twice")
    loaded = [load_arm(name, arguments.set, list(range(arguments.seeds))) for name in names]
    arms, jobs = [arm for arm, _ in loaded], [job for _, job in loaded]
    for arm in arms[1:]:
        if arm.key == arms[0].key:
            raise ConfigError(f"{arms[0].name} and {arm.name} are the same config: there is nothing to compare")
        for line in check_data(arms[0], arm):
            print(f"leyden: warning: {line}", file=sys.stderr)

    num_jobs = arguments.jobs or (len(arms) * arguments.seeds if on_slurm else 1)
    missing = _missing(arms, jobs, arguments.metric)
    if on_slurm:
        _run_on_slurm(missing, arguments.slurm, num_jobs, arguments.metric)
    else:
        _run_here(missing, num_jobs, arguments.metric)

    failed = [f"{arm.name}, seed {seed}" for arm in arms for seed in arm.failures]
    if not any(arm.results for arm in arms):
        print("leyden: error: no run has ended", file=sys.stderr)
        return 1
    mode = arguments.mode or default_mode(arguments.metric)
    report = make_report(arms, arguments.metric, mode, seeds=arguments.seeds, jobs=num_jobs, settings=arguments.set)
    folder = LOGS / "compare" / (arguments.name or "-vs-".join(name.replace("/", "_") for name in reversed(names)))
    _write(folder, report, arms)
    print_report(report)
    print(f"leyden: {folder}: report.json, curves.png, differences.png")
    if arguments.wandb:
        from leyden.cli.comparison_wandb import log_comparison

        os.environ.setdefault("WANDB_QUIET", "true")
        print(f"leyden: {log_comparison(folder, arguments.wandb, report, arms)} runs written to W&B")
    if failed:
        advice = "not recorded; " if arguments.record else ""
        print(f"leyden: error: {advice}failed: {'; '.join(failed)}", file=sys.stderr)
        return 1
    if arguments.record:
        from leyden.catalog.evidence import write_evidence

        print(f"leyden: {write_evidence(arguments.record, report)}")
    return 0


# ---- running


def _missing(arms: list[Arm], jobs: list[Job], metric: str) -> list[tuple[Arm, Job]]:
    """Sorts what has been finished before into the arms.

    Returns:
        The rest.
    """
    missing = []
    for arm, job in zip(arms, jobs, strict=True):
        seeds = []
        for seed in job.seeds:
            result = known_result(job, seed)
            if result is None:
                seeds.append(seed)
            else:
                _note(arm, seed, result, metric, " (finished before)")
        if seeds:
            missing.append((arm, replace(job, seeds=seeds)))
    return missing


def _run_on_slurm(missing: list[tuple[Arm, Job]], options: list[str], num_jobs: int, metric: str) -> None:
    runs = [(arm, job, seed) for arm, job in missing for seed in job.seeds]

    def note(index: int, outcome: dict[str, Any] | str) -> None:
        arm, _, seed = runs[index]
        _note(arm, seed, outcome, metric)

    run_on_slurm([(job, seed) for _, job, seed in runs], options, num_jobs, note)


def _run_here(missing: list[tuple[Arm, Job]], num_processes: int, metric: str) -> None:
    """Makes runs in processes of their own, and sorts what they gave into the arms."""
    waiting: list[tuple[Arm, Job]] = []
    parts = -(-num_processes // max(1, len(missing)))  # of the seeds of one config: work for all processes
    for arm, job in missing:
        for part in range(parts):
            if seeds := job.seeds[part::parts]:
                waiting.append((arm, replace(job, seeds=seeds)))

    if num_processes > 1:  # for the processes: torch reads it when it is imported
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))
    running: dict[Connection, tuple[Any, Arm, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                arm, job = waiting.pop(0)
                connection, process = _start(job)
                running[connection] = (process, arm, job)
            for connection in cast(list[Connection], wait(list(running))):
                process, arm, job = running[connection]
                try:
                    seed, outcome = connection.recv()
                except EOFError:
                    del running[connection]
                    process.join()
                    if job.seeds:  # the process was killed in the first of them
                        _note(arm, job.seeds.pop(0), f"its process ended with code {process.exitcode}", metric)
                        if job.seeds:
                            waiting.insert(0, (arm, job))
                else:
                    job.seeds.remove(seed)
                    _note(arm, seed, outcome, metric)
    finally:
        for process, _, _ in running.values():
            process.kill()  # a run can be killed at any moment
            process.join()


def _start(job: Job) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, sender))
    process.start()
    sender.close()
    return receiver, process


def _note(arm: Arm, seed: int, outcome: dict[str, Any] | str, metric: str, remark: str = "") -> None:
    """Files and prints the outcome of a run.

    Raises:
        ConfigError: the run did not log the metric.
    """
    if isinstance(outcome, str):
        arm.failures[seed] = outcome
        log = arm.folder / f"seed-{seed}" / "output.log"
        print(f"leyden: error: {arm.name}, seed {seed}: {outcome} ({log})", file=sys.stderr)
        return
    if arm.stage is not None:
        outcome = outcome | {"metrics": outcome["stages"][arm.stage]}
    if metric not in outcome["metrics"]:
        logged = ", ".join(sorted(outcome["metrics"])) or "nothing"
        raise ConfigError(f"{arm.name} logged no {metric!r}; it logged: {logged}")
    arm.results[seed] = outcome
    value = outcome["metrics"][metric]
    shown = "not finite" if value is None else f"{value:.4f}"
    seconds = f", {outcome['seconds']:.1f} s" if outcome["seconds"] is not None and not remark else ""
    print(f"{arm.name}, seed {seed}: {metric} {shown}{seconds}{remark}", flush=True)


def _write(folder: Path, report: dict[str, Any], arms: list[Arm]) -> None:
    from leyden.cli.comparison_plots import plot_curves, plot_differences
    from leyden.core.replace_file import replace_file

    with replace_file(folder / "report.json") as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())
    plot_curves(folder / "curves.png", report, arms)
    plot_differences(folder / "differences.png", report)
