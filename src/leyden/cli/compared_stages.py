"""A run of stages, and an evaluation that trains nothing, that measure what a comparison reports."""

import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from leyden.cli.compared_fit import FLOOR, forget_peak, peak_memory
from leyden.cli.config import Section
from leyden.cli.evaluation import Evaluation
from leyden.cli.run_folder import find_checkpoint
from leyden.cli.stages import Stages
from leyden.cli.trainless_stages import load_function
from leyden.weights import CheckpointFile

__all__ = ["evaluate_fit", "run_stages"]


def run_stages(path: Path, options: list[tuple[str, str]], folder: Path, seed: int) -> dict[str, Any]:
    """Runs the stages of a file, or goes on with them.

    Seeds of members follow each other: those of the next seed begin behind them.

    Returns:
        As `ComparedFit.result`, and ``stages``: metrics by stage, of the last round, the mean over members.
    """
    from leyden.cli.run import Run

    resumed = (folder / "stages.json").is_file()
    settings = [f"{key}={value}" for key, value in options]
    run = Run(Namespace(stages=str(path), name=None, resume=None, first=None, jobs=1, set=settings), [], folder=folder)
    run.stages.measured = True
    run.options.append(("seed_everything", str(seed * max(stage.members or 1 for _, stage in run.stages))))
    forget_peak()
    cpu_started = time.process_time()
    code = run.go()
    if code:
        raise RuntimeError(f"the stages ended with code {code}")
    by_stage = stage_metrics(run.stages, run.records)
    return {
        "metrics": {name: value for metrics in by_stage.values() for name, value in metrics.items()},
        "stages": by_stage,
        "seconds": None if resumed else round(sum(record["seconds"] for record in run.records.values()), 3),
        "cpu_seconds": None if resumed else round(time.process_time() - cpu_started, 3),
        "memory": round(peak_memory() - FLOOR, 2),
        "steps": None,
        "parameters": None,
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "resumed": resumed,
    }


def stage_metrics(stages: Stages, records: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metrics and given numbers by stage: of the last round, the mean over members; None if it is not finite."""
    found: dict[str, dict[str, float | None]] = {}
    for loop, stage in stages:
        label = loop.folder(stage, loop.last_round)
        labels = [label] if stage.members is None else [f"{label}/member-{n}" for n in range(stage.members)]
        parts = [
            record["metrics"] | {name: value for name, value in record["gives"].items() if not isinstance(value, str)}
            for record in (records[label] for label in labels)
        ]
        means = {name: fmean(part[name] for part in parts) for name in parts[0] if all(name in part for part in parts)}
        found[stage.name] = {name: value if math.isfinite(value) else None for name, value in means.items()}
    return found


def evaluate_fit(
    tree: Section, files: list[Path], folder: Path, function: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Calls a function with the method that has the weights of a fit's best checkpoint, and the data.

    Returns:
        What differs from the fit's result: ``metrics``, and no times.
    """
    state = dict(CheckpointFile(find_checkpoint(str(folder))))
    started = time.monotonic()
    numbers = Evaluation(tree, files, folder, "test").call(state, load_function(function), arguments)
    metrics = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    seconds = round(time.monotonic() - started, 3)
    return {"metrics": metrics, "seconds": None, "cpu_seconds": None, "evaluation_seconds": seconds}
