"""The HTML page about runs: numbers, curves, the test in pictures, config and environment."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from leyden.cli.comparison import config_changes
from leyden.cli.report.pictures import evaluation_section
from leyden.cli.report.saved_run import Curve, SavedRun
from leyden.cli.report.svg import NUM_COLOURS, Line, line_chart, thin_out

__all__ = ["figure_page", "render_page"]

POINTS, NUM_CHARTS = 60_000, 12  # of all lines together, and as many charts as are usual: keeps a page under 2 MB
UNITS = {
    "accuracy": "accuracy (share of samples)",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity (per token)",
    "mae": "mean absolute error",
    "r2": "R² (share of variance explained)",
}
HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
"""


def render_page(runs: Sequence[SavedRun], *, title: str, stages: str = "") -> str:
    """Makes the page.

    Args:
        runs: one, or several to be put side by side.
        title: heading.
        stages: section about the stages that the runs are part of.
    """
    parts = [
        _head(title),
        f"<h1>{escape(title)}</h1>",
        _intro(runs),
        stages,
        _tiles(runs[0]) if len(runs) == 1 else _numbers_table(runs),
        _missing(runs),
        *_curve_sections(runs),
        evaluation_section(runs),
        _config_changes(runs) if len(runs) > 1 else "",
        _environment(runs),
        _configs(runs),
        f"<script>\n{_asset('script.js')}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def figure_page(title: str, content: str) -> str:
    """A page of one figure."""
    return f"{_head(title)}{content}\n<script>\n{_asset('script.js')}</script>\n</body>\n</html>\n"


def _head(title: str) -> str:
    return HEAD.format(title=escape(title), style=_asset("style.css"))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


# ---- what came out


def _intro(runs: Sequence[SavedRun]) -> str:
    if len(runs) == 1:
        return f'<p class="soft">{escape(_status(runs[0]))}</p>'
    seeds = sorted(
        {str(run.config["seed_everything"]) for run in runs if run.config and "seed_everything" in run.config}
    )
    text = f"{len(runs)} runs; seeds: {', '.join(seeds) or 'unknown'}. Every line is one run, not a mean over seeds."
    return f'<p class="soft">{escape(text)}</p>'


def _status(run: SavedRun) -> str:
    seed = f", seed {run.config['seed_everything']}" if run.config and "seed_everything" in run.config else ""
    if not run.sessions:
        return f"One run{seed}"
    first, last = run.sessions[0], run.sessions[-1]
    end = last.get("end")
    state = f"{end['state']} {end['time']}" if end else "not ended"
    resumed = f", resumed {len(run.sessions) - 1} time(s)" if len(run.sessions) > 1 else ""
    return f"One run{seed}, started {first['time']}, {state}{resumed}"


def _facts(run: SavedRun) -> dict[str, str]:
    """Names and values: the test, then the best of validation, then size and time."""
    facts: dict[str, str] = {}
    for name in sorted(run.curves):
        if name.startswith("test/"):
            facts[name] = _number(run.last(name))
    losses = [value for _, value in run.curves.get("val/loss", []) if math.isfinite(value)]
    if losses:
        facts["lowest val/loss"] = _number(min(losses))
    for name in sorted(run.curves):
        if name.startswith("val/") and name != "val/loss":
            facts[f"last {name}"] = _number(run.last(name))
    if run.steps is not None:
        facts["optimizer steps"] = f"{run.steps:,}"
    if epochs := [value for _, value in run.curves.get("epoch", [])]:
        facts["epochs"] = f"{int(max(epochs)) + 1:,}"
    end = run.sessions[-1].get("end", {}) if run.sessions else {}
    if "parameters" in end:
        facts["parameters"] = f"{end['parameters']:,}"
    seconds = [session["end"]["seconds"] for session in run.sessions if "end" in session]
    if seconds:
        facts["time of the fit"] = _duration(sum(seconds))
    if "memory" in end:
        facts["peak memory"] = f"{end['memory']:,.0f} MiB"
    if run.throughput:
        speeds = sorted(speed for _, speed in run.throughput)
        facts["samples per second"] = f"{speeds[len(speeds) // 2]:,.0f}"
    return facts


def _tiles(run: SavedRun) -> str:
    tiles = [
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in _facts(run).items()
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _numbers_table(runs: Sequence[SavedRun]) -> str:
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = [
        f"<tr><th>{_colour_key(number)}{escape(run.name)}</th>"
        + "".join(f"<td>{escape(fact.get(name, '-'))}</td>" for name in names)
        + "</tr>"
        for number, (run, fact) in enumerate(zip(runs, facts, strict=True))
    ]
    return f'<div class="scroll"><table><tr><th>run</th>{head}</tr>{"".join(rows)}</table></div>'


def _missing(runs: Sequence[SavedRun]) -> str:
    whose: dict[str, list[str]] = {}
    for run in runs:
        for line in run.missing:
            whose.setdefault(line, []).append(run.name)
    lines = [line if len(runs) == 1 else f"{line} ({', '.join(names)})" for line, names in whose.items()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>What is missing</h2><ul class="warn">{items}</ul>' if lines else ""


# ---- curves


def _curve_sections(runs: Sequence[SavedRun]) -> list[str]:
    plans = _plans(sorted({name for run in runs for name in run.curves}))
    curves = [curve for run in runs for curve in (*run.curves.values(), run.throughput) if curve]
    if not curves:
        return []
    x_range = 0.0, max(curve[-1][0] for curve in curves)
    charts = {
        title: [chart for plan in group for chart in _charts(runs, plan, x_range)] for title, group in plans.items()
    }
    if any(run.throughput for run in runs):
        plan = _Plan("Throughput", "samples per second", [], log=False)
        speeds = [(run.name, run.throughput, False) for run in runs]
        charts["Optimisation"].append(_chart(plan.title, plan, speeds, runs, x_range))
    return [f'<h2>{title}</h2><div class="grid">{"".join(group)}</div>' for title, group in charts.items() if group]


@dataclass(frozen=True)
class _Plan:
    """A chart to be: which columns of the logs, their names, and whether they stand behind the others."""

    title: str
    y_label: str
    columns: list[tuple[str, str, bool]]
    log: bool = True
    steps: bool = False


def _plans(columns: Sequence[str]) -> dict[str, list[_Plan]]:
    """Sorts the columns of the logs into charts, by section."""
    left = [name for name in columns if name not in ("step", "epoch") and not name.startswith("test/")]
    terms = [name for name in left if name.startswith("train/") and f"{name}_epoch" in left and name != "train/loss"]
    term_means = [f"{name}_epoch" for name in terms]
    norms = [name for name in left if name.startswith("train/grad_norm")]
    rates = [name for name in left if name.startswith("lr-")]
    used = {*terms, *term_means, *norms, *rates, "train/batch_size"}
    curves: list[_Plan] = []
    bases = {
        name.removeprefix("train/").removesuffix("_epoch")
        for name in left
        if name.startswith("train/") and name not in used
    }
    bases |= {name.removeprefix("val/") for name in left if name.startswith("val/")}
    for base in sorted(bases, key=lambda base: (base != "loss", base)):
        candidates = [
            (f"train/{base}", "training, single steps", True),
            (f"train/{base}_epoch", "training, mean of an epoch", False),
            (f"val/{base}", "validation", False),
        ]
        found = [item for item in candidates if item[0] in left]
        used |= {name for name, _, _ in found}
        curves.append(_Plan(base.capitalize(), UNITS.get(base, base), found, log=base not in UNITS))
    optimisation: list[_Plan] = []
    if rates:
        shown = [(name, name.removeprefix("lr-"), False) for name in rates]
        optimisation.append(_Plan("Learning rate", "learning rate", shown, log=False))
    if "train/batch_size" in left:
        shown = [("train/batch_size", "batch size", False)]
        optimisation.append(_Plan("Batch size", "samples per optimizer step", shown, log=False, steps=True))
    if norms:
        shown = [(name, name.removeprefix("train/"), False) for name in norms]
        optimisation.append(_Plan("Gradient norm", "L2 norm before clipping", shown))
    named = [(name, name.removeprefix("train/"), False) for name in terms]
    return {
        "Curves": curves,
        "Loss terms": [_Plan("Terms of the training loss", "weighted term, single steps", named)] if terms else [],
        "Optimisation": optimisation,
        "Other numbers": [_Plan(name, name, [(name, name, False)]) for name in left if name not in used],
    }


def _charts(runs: Sequence[SavedRun], plan: _Plan, x_range: tuple[float, float]) -> list[str]:
    """Of one run a chart with a line per column; of several a chart per column with a line per run."""
    if len(runs) == 1:
        curves = [(name, runs[0].curves.get(column, []), faint) for column, name, faint in plan.columns]
        return [_chart(plan.title, plan, curves, runs, x_range)]
    charts = []
    for column, name, _ in [item for item in plan.columns if not item[2]] or plan.columns:
        title = f"{plan.title}: {name}" if len(plan.columns) > 1 else plan.title
        curves = [(run.name, run.curves.get(column, []), False) for run in runs]
        charts.append(_chart(title, plan, curves, runs, x_range))
    return charts


def _chart(
    title: str,
    plan: _Plan,
    curves: Sequence[tuple[str, Curve, bool]],
    runs: Sequence[SavedRun],
    x_range: tuple[float, float],
) -> str:
    limit = max(100, min(500, POINTS // (NUM_CHARTS * len(runs))))
    lines = []
    for number, (name, curve, faint) in enumerate(curves):
        if any(math.isfinite(value) for _, value in curve):
            points, band = thin_out(curve, limit)
            lines.append(Line(name, points, number, faint, steps=plan.steps, band=band))
    bad = sum(not math.isfinite(value) for _, curve, _ in curves for _, value in curve)
    notes = [f"{len(runs)} run" + ("s" if len(runs) > 1 else "")]
    if any(line.band for line in lines):
        notes.append("of many points the mean and the range")
    if bad:
        notes.append(f"{bad} values are not finite and not drawn")
    if absent := [name for name, curve, _ in curves if not curve]:
        notes.append(f"not logged: {', '.join(absent)}")
    body = '<p class="warn">no finite value</p>'
    if lines:
        body = line_chart(
            lines,
            label=f"{title} over the optimizer steps",
            x_label="optimizer step",
            y_label=plan.y_label,
            x_range=x_range,
            log=plan.log,
        )
    return f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{escape('; '.join(notes))}</figcaption></figure>"


# ---- config and environment


def _config_changes(runs: Sequence[SavedRun]) -> str:
    first = next((run for run in runs if run.config), None)
    if first is None:
        return ""
    changes = [config_changes(_bare(first), _bare(run)) if run.config else {} for run in runs]
    keys = sorted({key for change in changes for key in change})
    if not keys:
        return "<h2>What differs in the configs</h2><p>Nothing.</p>"
    base = {key: old for change in changes for key, (old, _) in change.items()}
    head = "".join(f"<th>{_colour_key(number)}{escape(run.name)}</th>" for number, run in enumerate(runs))
    rows = []
    for key in keys:
        cells = "".join(
            f"<td>{escape(_cell(key, change, base[key])) if run.config else '?'}</td>"
            for run, change in zip(runs, changes, strict=True)
        )
        rows.append(f"<tr><th>{escape(key)}</th>{cells}</tr>")
    table = f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    return f"<h2>What differs in the configs</h2>{table}"


def _cell(key: str, change: dict[str, list[Any]], base: Any) -> str:
    """Value of a key in a run that differs from the first one as ``change`` says."""
    if key in change:
        return _short(change[key][1])
    if any(key.startswith(f"{other}.") for other in change):
        return "-"  # a part of something that is another here
    if any(other.startswith(f"{key}.") for other in change) and isinstance(base, dict) and "class_path" in base:
        return base["class_path"].rsplit(".", 1)[-1]  # its arguments that differ have rows of their own
    return _short(base)


def _bare(run: SavedRun) -> dict[str, Any]:
    """The config without what names the run in logs."""
    config: dict[str, Any] = json.loads(json.dumps(run.config, default=str))
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        trainer.pop("logger", None)
    return config


def _environment(runs: Sequence[SavedRun]) -> str:
    facts: list[tuple[str, dict[str, Any]]] = []
    for run in runs:
        for number, session in enumerate(run.sessions):
            start = "" if len(run.sessions) == 1 else f"start {number + 1}, step {session.get('step', 0)}"
            names = [*([run.name] if len(runs) > 1 else []), *([start] if start else [])]
            facts.append((", ".join(names) or "value", session.get("environment", {})))
    keys = list(dict.fromkeys(key for _, environment in facts for key in environment))
    if not keys:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in facts)
    rows = [
        f"<tr><th>{escape(key)}</th>"
        + "".join(f"<td>{escape(str(environment.get(key, '-')))}</td>" for _, environment in facts)
        + "</tr>"
        for key in keys
    ]
    return f'<h2>Environment</h2><div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _configs(runs: Sequence[SavedRun]) -> str:
    parts = [
        f"<details><summary>config.yaml{'' if len(runs) == 1 else f' of {escape(run.name)}'}</summary>"
        f"<pre>{escape(yaml.safe_dump(run.config, sort_keys=False))}</pre></details>"
        for run in runs
        if run.config
    ]
    return f"<h2>Config</h2>{''.join(parts)}" if parts else ""


# ---- texts


def _colour_key(number: int) -> str:
    return f'<span class="key" style="background:var(--c{number % NUM_COLOURS})"></span>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _short(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        arguments = {key: inner for key, inner in (value.get("init_args") or {}).items() if inner is not None}
        text = value["class_path"].rsplit(".", 1)[-1] + (f" {json.dumps(arguments)}" if arguments else "")
    else:
        text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}…"
