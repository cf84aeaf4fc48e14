"""The two pictures of a comparison: learning curves with bands, and the paired differences."""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from leyden.cli.comparison import Arm

__all__ = ["learning_curve", "plot_curves", "plot_differences"]

# told apart in the common forms of colour blindness (Okabe and Ito)
COLOURS = ("#444444", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FEW_POINTS = 10  # of a curve, that are marked


def learning_curve(runs: list[Path], metric: str) -> list[tuple[int, list[float]]]:
    """Values of a metric over the steps.

    Args:
        runs: ``metrics.csv`` of the seeds.
        metric: name of a column.

    Returns:
        Step and values of the seeds, for each step that all of them logged.
    """
    values: dict[int, list[float]] = defaultdict(list)
    for path in runs:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row.get(metric):
                    values[int(row["step"])].append(float(row[metric]))
    return sorted((step, found) for step, found in values.items() if len(found) == len(runs))


def plot_curves(path: Path, report: Mapping[str, Any], arms: list[Arm]) -> None:
    """Draws mean and standard deviation over the seeds: the metric in validation, and the training loss.

    Args:
        path: the picture.
        report: of the comparison.
        arms: baseline and methods, for their runs' ``metrics.csv``.
    """
    name = report["metric"].rsplit("/", 1)[-1]
    panels = [f"val/{name}", _train_column(arms)]
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained", dpi=150)
    for number, column in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for colour, arm in zip(_colours(), arms, strict=False):
            files = _logs(arm)
            _draw_band(axes, learning_curve(files, column), f"{arm.name} ({len(files)} seeds)", colour)
        label = _with_unit(column.removesuffix("_epoch"))
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(f"{label}, mean of an epoch" if column.endswith("_epoch") else label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not axes.lines:
            axes.text(0.5, 0.5, f"{column} was not logged", ha="center", va="center", transform=axes.transAxes)
        elif "loss" in column and axes.dataLim.y0 > 0 and axes.dataLim.y1 > 10 * axes.dataLim.y0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        _clean(axes)
    handles, labels = next((found for axes in figure.axes if (found := axes.get_legend_handles_labels())[0]), ([], []))
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"Learning curves: mean ± standard deviation, {report['seeds']} seeds")
    _save(figure, path)


def plot_differences(path: Path, report: Mapping[str, Any]) -> None:
    """Draws the difference to the baseline in each seed, and the 95% interval of the mean."""
    methods = [arm for arm in report["methods"] if arm["difference"]]
    figure = Figure(figsize=(7.2, 1.9 + 0.7 * len(methods)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.axvline(0.0, color=COLOURS[0], linewidth=1.0, linestyle="--")
    for row, (colour, arm) in enumerate(zip(_colours()[1:], methods, strict=False)):
        difference = arm["difference"]
        values = list(difference["by_seed"].values())
        rows = [row - 0.04 * number for number in range(len(values))]  # equal ones do not hide each other
        axes.scatter(values, rows, s=28, facecolors="none", edgecolors=colour, zorder=3)
        center = row + 0.22
        if difference["interval"]:
            axes.hlines(center, *difference["interval"], color=colour, linewidth=2.5)
        axes.plot(difference["mean"], center, "D", color=colour, markersize=7)
    axes.set_yticks(range(len(methods)), [f"{arm['name']}\n{arm['verdict']}" for arm in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    better = "right" if report["mode"] == "max" else "left"
    figure.supxlabel(
        f"{_with_unit(report['metric'])}: method minus baseline (better to the {better})", fontsize=10
    )  # below the names too: an axis' own label would be cut off
    figure.suptitle(
        f"Paired differences to {report['baseline']['name']}, {report['seeds']} seeds\n"
        "(circles: one seed; diamond and bar: mean and 95% t interval)",
        fontsize=10,
    )
    _clean(axes)
    _save(figure, path)


def _logs(arm: Arm) -> list[Path]:
    paths = [arm.folder / f"seed-{seed}" / arm.log / "metrics.csv" for seed in sorted(arm.results)]
    return [path for path in paths if path.is_file()]  # not every stage has one


def _train_column(arms: list[Arm]) -> str:
    """The training loss of epochs, or where there are few of them that of single steps."""
    epochs = max((len(learning_curve(_logs(arm), "train/loss_epoch")) for arm in arms if arm.results), default=0)
    return "train/loss_epoch" if epochs > 2 else "train/loss"


def _with_unit(metric: str) -> str:
    return f"{metric} (share of samples)" if metric.endswith("accuracy") else metric


def _colours() -> list[str]:
    return list(COLOURS) * 4


def _draw_band(axes: Axes, curve: list[tuple[int, list[float]]], label: str, colour: str) -> None:
    if not curve:
        return
    steps = [step for step, _ in curve]
    center = [mean(values) for _, values in curve]
    spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in curve]
    marker = "o" if len(curve) <= FEW_POINTS else None
    axes.plot(steps, center, color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    if len(curve) == 1:  # a band has no width there
        axes.errorbar(steps, center, yerr=spread, color=colour, capsize=3)
    low = [max(c - s, min(values)) for c, s, (_, values) in zip(center, spread, curve, strict=True)]  # > 0 for a loss
    high = [c + s for c, s in zip(center, spread, strict=True)]
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
