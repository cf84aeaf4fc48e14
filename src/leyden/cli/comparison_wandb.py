"""A comparison in W&B: its runs as one group, written when they have ended, so that no time of theirs goes into it."""

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leyden.cli.comparison import Arm
from leyden.cli.wandb_runs import finish_wandb, named_by_class, wandb_mode
from leyden.plugins import WandbLogger

__all__ = ["log_comparison"]


def log_comparison(folder: Path, project: str, report: Mapping[str, Any], arms: list[Arm]) -> int:
    """Writes one W&B run per run of a comparison, and one with the report and its pictures.

    What was written before is not written again.

    Args:
        folder: of the report.
        project: in W&B.
        report: of the comparison.
        arms: baseline and methods.

    Returns:
        Number of runs that were written.
    """
    group = f"compare/{folder.name}"
    written = 0
    for arm in arms:
        job_type = "baseline" if arm is arms[0] else "method"
        for seed, result in sorted(arm.results.items()):
            logger = _logger(folder, project, group, job_type, f"{arm.name}/seed-{seed}", [arm.name], result)
            if logger is None:
                continue
            logger.log_hyperparams(named_by_class(arm.resolved) | {"seed_everything": seed})
            for step, values in _rows(arm.folder / f"seed-{seed}" / arm.log / "metrics.csv"):
                logger.log_metrics(values, step)
            for name in {"seconds", "cpu_seconds", "memory", "parameters"} & result.keys():
                logger.experiment.summary[name] = result[name]
            finish_wandb()
            written += 1
    names = [arm.name for arm in arms]
    logger = _logger(folder, project, group, "report", folder.name, names, report)
    if logger is not None:
        logger.log_hyperparams({key: report[key] for key in ("metric", "mode", "seeds", "settings")})
        for method in report["methods"]:
            facts = {"mean": method["mean"], "difference": method["difference"], "verdict": method["verdict"]}
            logger.experiment.summary[method["name"]] = facts
        logger.log_image("curves", [str(folder / "curves.png")])
        logger.log_image("differences", [str(folder / "differences.png")])
        finish_wandb()
        written += 1
    return written


def _rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """What a run logged, by step."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (int(row["step"]), {name: float(row[name]) for name in row if row[name] and name != "step"}) for row in rows
    ]


def _logger(
    folder: Path, project: str, group: str, job_type: str, name: str, tags: list[str], content: Any
) -> WandbLogger | None:
    """The logger of a run; None if there is a run of this content already."""
    text = json.dumps([project, group, job_type, name, content], sort_keys=True)
    run_id = hashlib.sha256(text.encode()).hexdigest()[:8]
    if any(folder.glob(f"wandb/*run-*-{run_id}")):
        return None
    logger = WandbLogger(
        name=f"{group}/{name}" if job_type == "report" else name,
        project=project,
        save_dir=str(folder.resolve()),
        id=run_id,
        group=group,
        job_type=job_type,
        tags=tags,
        mode=wandb_mode(),
    )
    del logger._wandb_init["anonymous"]  # only its being there makes W&B warn that it has no effect
    return logger
