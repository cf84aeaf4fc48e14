"""What a sweep leaves: a table of its runs, and the config of the best one."""

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from leyden.cli.sweep_study import SweepStudy

__all__ = ["print_runs", "write_best"]


def print_runs(study: SweepStudy) -> None:
    """Prints the runs, the best first, then those that were stopped, diverged or failed."""
    sweep = study.sweep
    better = "less is better" if sweep.mode == "min" else "more is better"
    table = Table(title=f"{sweep.metric} ({better}), {len(study.trials)} runs by {sweep.method}", title_justify="left")
    for column in ("run", sweep.metric, *(parameter.key for parameter in sweep.parameters), "seconds"):
        table.add_column(column, justify="right")
    table.add_column("")
    sign = 1 if sweep.mode == "min" else -1

    def rank(trial: Any) -> tuple[Any, ...]:
        complete = trial.user_attrs.get("outcome") == "complete"
        return (not complete, sign * trial.value if complete else 0.0, trial.number)

    for trial in sorted(study.trials, key=rank):
        outcome = trial.user_attrs.get("outcome", "not ended")
        complete = outcome == "complete"
        typed = study.typed(trial) if trial.params else {}
        table.add_row(
            str(trial.number),
            f"{trial.value:.6g}" if complete else "-",
            *(_brief(typed.get(parameter.key, "-")) for parameter in sweep.parameters),
            str(trial.user_attrs.get("seconds", "-")),
            "" if complete else outcome,
        )
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def write_best(path: Path, study: SweepStudy, trial: Any, config: Path) -> None:
    """Writes the whole config of a run, less what ties it to the sweep.

    Args:
        path: the file.
        study: of the sweep.
        trial: the run.
        config: of the run.
    """
    from leyden.core.replace_file import replace_file

    content = yaml.safe_load(config.read_text())
    content.pop("test_after_fit")  # tests, as a fit does by itself
    loggers = content["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else []:
        for key in ("group", "job_type", "id", "name"):
            logger.get("init_args", {}).pop(key, None)
    values = ", ".join(f"{key}={text}" for key, text in study.typed(trial).items())
    result = f"{study.sweep.metric} {trial.value:.6g}"
    head = f"# Run {trial.number} of {len(study.trials)} of the sweep {study.sweep.path.name}: {result} with {values}\n"
    with replace_file(path) as file:
        file.write((head + yaml.safe_dump(content, sort_keys=False)).encode())


def _brief(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return text
    return text if number == int(number) else f"{number:.4g}"
