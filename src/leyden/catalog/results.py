"""``docs/results.md``: one table of all recorded evidence, also where a method did not help."""

from pathlib import Path
from typing import Any

from leyden.catalog.evidence import evidence_slugs, read_evidence
from leyden.catalog.papers import read_papers

__all__ = ["render_results", "write_results"]

HEAD = """\
# Results

What each method gave against its baseline at the scale of one laptop core, also where it did not help. Made by
`leyden results` from the evidence that `leyden compare BASELINE METHOD --record SLUG` stores; do not edit.

- Both ran in the same seeds on the same data. *Difference* is the mean over the seeds of method minus baseline, with
  its 95% interval (paired t). The interval is about seeds: another split or another data set may say otherwise.
- *Better* and *worse* mean that the interval does not hold 0. With many rows, some of them are so by chance.
- Hyperparameters are the paper's, or those of the experiment's file. Numbers at this scale say that a part works as it
  should, not what it gives at the scale of its paper.
- *Time* and *memory* are ratios to the baseline, medians over the seeds: of the processor's time in the fit (on a GPU
  of the clock's), and of what the process grew by.

"""
COLUMNS = (
    "Method",
    "Experiment",
    "Baseline",
    "Metric",
    "Baseline mean ± std",
    "Method mean ± std",
    "Difference [95% interval]",
    "Seeds",
    "Time",
    "Memory",
    "Seen",
)


def render_results() -> str:
    """Makes the page."""
    places: dict[str, tuple[str, str]] = {}
    for paper in read_papers():
        for comparison in paper.comparisons:
            if comparison.evidence is not None:
                places[comparison.evidence] = (paper.family, paper.slug)
    slugs = sorted(evidence_slugs(), key=lambda slug: (*places.get(slug, ("~", "")), slug))
    parts, family = [HEAD], None
    for slug in slugs:
        place = places.get(slug, ("other", "-"))
        if place[0] != family:
            family = place[0]
            gap = "\n" if len(parts) > 1 else ""
            parts += [f"{gap}## {family.capitalize()}\n\n", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
        parts += [_row(_cells(place[1], report, arm)) for report in [read_evidence(slug)] for arm in report["methods"]]
    return "".join(parts)


def write_results(path: Path) -> None:
    """Writes the page.

    Args:
        path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_results())


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cells(paper: str, report: dict[str, Any], arm: dict[str, Any]) -> list[str]:
    arrow = "↑" if report["mode"] == "max" else "↓"
    difference = arm["difference"]
    interval = difference["interval"]
    shown = f"{difference['mean']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")
    return [
        paper,
        f"`{arm['name']}`",
        f"`{report['baseline']['name']}`",
        f"{report['metric']} {arrow}",
        _mean(report["baseline"]),
        _mean(arm),
        shown,
        str(difference["n"]),
        _ratio(arm["time_ratio"]),
        _ratio(arm["memory_ratio"]),
        arm["verdict"],
    ]


def _mean(arm: dict[str, Any]) -> str:
    return f"{arm['mean']:.4f}" + (f" ± {arm['std']:.4f}" if arm["std"] is not None else "")


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
