"""What the runs of a comparison say together: the report, and its table."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from leyden.catalog.evidence import verdict
from leyden.cli.config import ConfigError

__all__ = ["Arm", "check_data", "config_changes", "make_report", "print_report"]


# arguments of a DataModule that do not choose the data
SAME_DATA = ("batch_size", "eval_batch_size", "num_workers", "drop_last", "order", "augment", "seed")


@dataclass
class Arm:
    """One config of a comparison.

    Attributes:
        name: as it was given.
        resolved: the whole config, less what does not change the result.
        key: names the resolved config.
        source: digest of the config as it was written, before defaults are filled in.
        folder: of its runs.
        results: of the runs, by seed.
        failures: what went wrong, by seed.
        stage: of a stages file, whose metrics count; None for the last that has the metric.
        log: where below a run's folder the fit lies whose curves are shown.
    """

    name: str
    resolved: dict[str, Any]
    key: str
    source: str
    folder: Path
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    stage: str | None = None
    log: str = ""

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed; a run that diverged has no finite one and counts as failed."""
        found = {seed: self.results[seed]["metrics"][metric] for seed in sorted(self.results)}
        return {seed: value for seed, value in found.items() if value is not None}


def make_report(
    arms: list[Arm], metric: str, mode: str, *, seeds: int, jobs: int, settings: list[str]
) -> dict[str, Any]:
    """Puts together what is printed, written to ``report.json`` and recorded as evidence.

    Args:
        arms: the baseline, then the methods.
        metric: name of the compared metric.
        mode: ``"max"`` if more of it is better, ``"min"`` if less.
        seeds: number of seeds.
        jobs: runs at a time.
        settings: what ``--set`` was given.
    """
    baseline = arms[0]
    results = [result for arm in arms for result in arm.results.values()]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "metric": metric,
        "mode": mode,
        "seeds": seeds,
        "settings": settings,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "accelerator": results[0]["accelerator"],
            "cores": len(os.sched_getaffinity(0)),
            "threads": results[0]["threads"],
            "jobs": jobs,
        },
        "versions": results[0]["versions"],
        "baseline": _describe(baseline, metric),
        "methods": [_describe(arm, metric) | _against(baseline, arm, metric, mode) for arm in arms[1:]],
    }


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    base, metric = report["baseline"], report["metric"]
    better = "more is better" if report["mode"] == "max" else "less is better"
    table = Table(title=f"{metric} ({better}), {report['seeds']} seeds", title_justify="left")
    for column in ("", "n", "mean ± std", "difference", "95% interval (t)", "(bootstrap)", "time", "memory", ""):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(base["name"], str(base["n"]), _mean_text(base))
    for arm in report["methods"]:
        table.add_row(
            arm["name"],
            str(arm["n"]),
            _mean_text(arm),
            _signed(arm["difference"]["mean"]) if arm["difference"] else "",
            _interval_text(arm["difference"] and arm["difference"]["interval"]),
            _interval_text(arm["difference"] and arm["difference"]["bootstrap"]),
            _ratio_text(arm["time_ratio"]),
            _ratio_text(arm["memory_ratio"]),
            arm["verdict"],
        )
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def config_changes(before: Any, after: Any, path: str = "") -> dict[str, list[Any]]:
    """What differs between two configs: ``[before, after]`` by dotted key, None for what is not there.

    Items of a list of classes go by their class, as on the command line.
    """
    before, after = _by_class(before), _by_class(after)
    same_kind = isinstance(before, dict) and isinstance(after, dict)
    if not same_kind or before.get("class_path") != after.get("class_path"):
        return {} if before == after else {path: [before, after]}
    changes: dict[str, list[Any]] = {}
    for key in before | after:
        inner = path if key == "init_args" else f"{path}.{key}".removeprefix(".")
        changes |= config_changes(before.get(key), after.get(key), inner)
    return changes


def check_data(baseline: Arm, arm: Arm) -> list[str]:
    """Whether two configs train and test on the same data.

    Returns:
        Lines that warn of other differences of the data than its batches, order, augmentation and loading.

    Raises:
        ConfigError: they do not: results of different data do not compare.
    """
    before, after = baseline.resolved.get("data") or {}, arm.resolved.get("data") or {}
    changes = config_changes(before, after, "data")
    warnings = []
    for key, (old, new) in changes.items():
        if key in ("data", "data.split_seed"):
            names = [value["class_path"] if isinstance(value, dict) else value for value in (old, new)]
            raise ConfigError(
                f"{baseline.name} and {arm.name} differ in their data: {key} is {names[0]} and {names[1]}; "
                "results on different data do not compare"
            )
        if key.split(".")[1] not in SAME_DATA:
            warnings.append(f"{baseline.name} and {arm.name} differ in their data: {key} is {old!r} and {new!r}")
    return warnings


def _by_class(value: Any) -> Any:
    if not isinstance(value, list) or not value or not all(isinstance(i, dict) and "class_path" in i for i in value):
        return value
    named: dict[str, Any] = {}
    for item in value:
        name, number = item["class_path"].rsplit(".", 1)[-1], 2
        unique = name
        while unique in named:
            unique, number = f"{name}_{number}", number + 1
        named[unique] = item
    return named


def _describe(arm: Arm, metric: str) -> dict[str, Any]:
    values = arm.values(metric)
    return {
        "name": arm.name,
        "config": arm.key,
        "source": arm.source,
        "n": len(values),
        "mean": mean(values.values()) if values else None,
        "std": stdev(values.values()) if len(values) > 1 else None,
        "runs": [
            {name: value for name, value in result.items() if name not in ("versions", "accelerator", "threads")}
            for _, result in sorted(arm.results.items())
        ],
        "failures": {str(seed): message for seed, message in sorted(arm.failures.items())},
    }


def _against(baseline: Arm, arm: Arm, metric: str, mode: str) -> dict[str, Any]:
    from leyden.analysis import paired_difference

    before, after = baseline.values(metric), arm.values(metric)
    pairs = sorted(before.keys() & after.keys())
    comparison: dict[str, Any] = {
        "changes": config_changes(baseline.resolved, arm.resolved),
        "difference": None,
        "time_ratio": _ratio(baseline, arm, "seconds" if _on_gpu(arm) else "cpu_seconds"),
        "memory_ratio": _ratio(baseline, arm, "memory"),
        "verdict": "no pair of runs has ended",
    }
    if not pairs:
        return comparison
    found = paired_difference([before[seed] for seed in pairs], [after[seed] for seed in pairs])
    difference = {
        "n": found.n,
        "mean": found.mean,
        "std": found.std,
        "interval": found.interval and list(found.interval),
        "bootstrap": found.bootstrap and list(found.bootstrap),
        "by_seed": {str(seed): after[seed] - before[seed] for seed in pairs},
    }
    return comparison | {"difference": difference, "verdict": verdict(found.interval, mode)}


def _ratio(baseline: Arm, arm: Arm, name: str) -> float | None:
    """Median over the seeds of the ratio to the baseline; runs that were interrupted have no time."""
    pairs = [
        (arm.results[seed][name], baseline.results[seed][name])
        for seed in sorted(arm.results.keys() & baseline.results.keys())
    ]
    ratios = [after / before for after, before in pairs if after and before]
    return round(median(ratios), 3) if ratios else None


def _on_gpu(arm: Arm) -> bool:
    return any(result["accelerator"] != "cpu" for result in arm.results.values())


def _mean_text(arm: Mapping[str, Any]) -> str:
    if arm["mean"] is None:
        return "-"
    return f"{arm['mean']:.4f}" + (f" ± {arm['std']:.4f}" if arm["std"] is not None else "")


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _interval_text(interval: list[float] | None) -> str:
    return f"[{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "-"


def _ratio_text(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio is not None else "-"
