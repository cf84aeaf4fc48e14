"""A hook of MkDocs: makes the pages of methods from the catalog, those of the API from the rooms, the navigation."""

import math
import re
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from leyden.catalog.evidence import evidence_slugs, read_evidence
from leyden.catalog.papers import Comparison, Paper, read_papers
from leyden.catalog.parts import describe_part

ROOT = Path(__file__).parents[1]
ROOMS = ROOT / "src" / "leyden"
# in this order; pages that are not named here follow by name
HOW_TO = ["compare", "report", "your-method", "composing-methods", "your-data", "your-template", "sweeps", "wandb"]
HOW_TO += ["stages", "merge-models", "distill", "my-loss-diverges", "editor", "predict", "export"]
MAX_SIGNATURE = 84  # letters in a line of a page
EXPORT = re.compile(r"^from \.(\w+) import (\w+) as \w+$", re.M)
ROOM_TEXTS = {
    "core": "the contracts",
    "weights": "arithmetic on weights",
    "nn": "layers and wrappers",
    "losses": "pure functions, each with its module",
    "optim": "optimizers and schedules",
    "metrics": "of torchmetrics' kind",
    "analysis": "functions on tensors, curves and models",
    "data": "DataModules and samplers",
    "models": "networks",
    "inference": "how outputs are drawn",
    "methods": "how a step is made",
    "callbacks": "what happens around a step",
    "plugins": "checkpoints and loggers",
    "curation": "data chosen or made before training",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts all pages that there are into the navigation."""
    papers = read_papers()
    families: dict[str, list[Any]] = {}
    for paper in papers:
        families.setdefault(paper.family.replace("_", " ").capitalize(), []).append({paper.slug: _card_path(paper)})
    docs = Path(config.docs_dir)
    how_to = sorted(
        (path.relative_to(docs).as_posix() for path in docs.glob("how-to/*.md")),
        key=lambda path: (HOW_TO.index(Path(path).stem) if Path(path).stem in HOW_TO else len(HOW_TO), path),
    )
    benchmarks = sorted(path.relative_to(docs).as_posix() for path in docs.glob("benchmarks/*.md"))
    config.nav = [
        {"Start": ["index.md", "concepts.md"]},
        {"How to": [*how_to, "scale.md"]},
        {"Methods": ["methods/index.md", *({family: pages} for family, pages in families.items())]},
        {"Results": ["results.md", *benchmarks]},
        {"API": ["api/index.md", *(f"api/{room}.md" for room in _rooms())]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    papers = read_papers()
    pages = {_card_path(paper): card(paper) for paper in papers}
    pages["methods/index.md"] = overview(papers)
    pages["api/index.md"] = "# API\n\n" + "\n".join(
        f"- [`leyden.{room}`]({room}.md): {ROOM_TEXTS.get(room, '')}" for room in _rooms()
    )
    pages |= {f"api/{room}.md": api(room) for room in _rooms()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> None:
    """Gives the wide table of results the whole width."""
    if page.file.src_uri == "results.md":
        page.meta["hide"] = ["navigation", "toc"]


# ---- methods


def overview(papers: list[Paper]) -> str:
    """The list of all methods."""
    lines = [
        "# Methods",
        "",
        f"{len(papers)} papers. `leyden papers WORDS` searches them, `leyden show NAME` prints one.",
        "",
    ]
    for family in dict.fromkeys(paper.family for paper in papers):
        lines += [f"## {family.replace('_', ' ').capitalize()}", ""]
        lines += ["| method | year | what it changes | against its baseline |", "| --- | --- | --- | --- |"]
        for paper in papers:
            if paper.family == family:
                verdicts = dict.fromkeys(filter(None, map(_verdict, paper.comparisons)))
                link = f"[{paper.slug}]({Path(_card_path(paper)).name})"
                lines.append(
                    f"| {link} | {paper.year} | {_cell(paper.changes)} | {'; '.join(verdicts) or 'not measured'} |"
                )
        lines.append("")
    return "\n".join(lines)


def card(paper: Paper) -> str:
    """The page of a paper."""
    links = [f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"] if paper.arxiv else []
    links += [f"[authors' code](https://github.com/{paper.code})"] if paper.code else []
    lines = [f"# {paper.slug}", "", f"**{paper.title}**", "", ", ".join([f"{paper.authors}, {paper.year}", *links]), ""]
    lines += [f"{paper.changes[0].upper()}{paper.changes[1:]}.", "", "## Parts", ""]
    for path in paper.parts:
        part = describe_part(path)
        module, room = _module_of(path), path.split(".")[1]
        lines += ["```python", _wrapped(f"leyden.{room}.{part.signature}"), "```", ""]
        lines += [f"{part.summary} ([reference][{module}])", ""]
    for comparison in paper.comparisons:
        lines += _comparison(comparison)
    if paper.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in paper.notes), ""]
    return "\n".join([*lines, "## Tests", "", *(f"- `{path}`" for path in paper.tests), ""])


def _wrapped(signature: str) -> str:
    """A long signature with a line per argument."""
    if len(signature) <= MAX_SIGNATURE:
        return signature
    name, _, arguments = signature.partition("(")
    lines, depth, start = [], 0, 0
    for place, letter in enumerate(arguments[:-1]):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            lines.append(arguments[start : place + 1].strip())
            start = place + 1
    lines.append(f"{arguments[start:-1].strip()},")
    return "\n    ".join([f"{name}(", *lines]) + "\n)"


def _comparison(comparison: Comparison) -> list[str]:
    experiment, baseline = comparison.experiment, comparison.baseline
    yaml = (ROOT / "configs" / "experiment" / f"{experiment}.yaml").read_text().rstrip()
    lines = [f"## Experiment `{experiment}`", "", "```yaml", yaml, "```", ""]
    command = "run" if "\nstages:" in yaml else "fit -c"
    lines += ["```console", f"$ leyden {command} {experiment}"]
    lines += [f"$ leyden compare {baseline} {experiment} --metric {comparison.metric} --seeds 5", "```", ""]
    if comparison.evidence not in evidence_slugs():
        return [*lines, "Not measured yet.", ""]
    report = read_evidence(comparison.evidence)
    arm = next(arm for arm in report["methods"] if arm["name"] == experiment)
    difference = arm["difference"]
    rows = {
        "baseline": f"{_mean(report['baseline'])} (`{baseline}`)",
        "method": _mean(arm),
        "difference": f"{difference['mean']:+.4f}, {difference['n']} seeds",
    }
    if difference["interval"]:
        rows["95% interval"] = " and ".join(
            f"[{low:+.4f}, {high:+.4f}] ({name})"
            for name, (low, high) in (("paired t", difference["interval"]), ("bootstrap", difference["bootstrap"]))
        )
    if arm["time_ratio"] and arm["memory_ratio"]:
        rows["cost"] = f"{arm['time_ratio']:.2f} times the baseline's time, {arm['memory_ratio']:.2f} times its memory"
    rows["seen"] = f"**{arm['verdict']}**"
    better = "more is better" if report["mode"] == "max" else "less is better"
    lines += [
        f"| `{report['metric']}` | {better} |",
        "| --- | --- |",
        *(f"| {key} | {row} |" for key, row in rows.items()),
        "",
    ]
    lines += [differences_svg(report, arm), ""]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return [*lines, f"Recorded {report['date']} on {report['machine']['accelerator']}, {versions}.", ""]


def differences_svg(report: dict[str, Any], arm: dict[str, Any]) -> str:
    """A picture of the paired differences, in the colours of the page."""
    difference, width, left, right = arm["difference"], 640, 20, 20
    values = list(difference["by_seed"].values())
    points = [0.0, *values, *(difference["interval"] or [])]
    low, high = min(points), max(points)
    margin = 0.08 * (high - low or 1.0)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    ink, faint, accent = (
        f"var(--md-{name})" for name in ("default-fg-color", "default-fg-color--light", "accent-fg-color")
    )
    drawn = [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="8" y2="78" stroke="{faint}" stroke-dasharray="4 3"/>']
    drawn.append(f'<line x1="{left}" x2="{width - right}" y1="78" y2="78" stroke="{faint}"/>')
    step = _nice_step(high - low)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        place, text = x(number * step), f"{number * step:+.10g}" if number else "0"
        drawn.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="78" y2="82" stroke="{faint}"/>')
        drawn.append(f'<text x="{place:.1f}" y="95" text-anchor="middle" font-size="11" fill="{ink}">{text}</text>')
    for row, value in enumerate(values):
        y = 46 + 24 * row / max(1, len(values) - 1)  # equal ones do not hide each other
        drawn.append(f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{accent}"/>')
    if difference["interval"]:
        start, end = map(x, difference["interval"])
        drawn.append(f'<line x1="{start:.1f}" x2="{end:.1f}" y1="26" y2="26" stroke="{accent}" stroke-width="3"/>')
    centre = x(difference["mean"])
    drawn.append(f'<path d="M {centre:.1f} 19 l 7 7 l -7 7 l -7 -7 z" fill="{accent}"/>')
    side = "right" if report["mode"] == "max" else "left"
    label = f"{report['metric']}: method minus baseline (better to the {side})"
    drawn.append(
        f'<text x="{width / 2}" y="114" text-anchor="middle" font-size="12" fill="{ink}">{escape(label)}</text>'
    )
    caption = f"Differences in {difference['n']} seeds (circles), their mean (diamond) and its 95% t interval (bar)."
    return (
        f'<figure style="width: 100%"><svg viewBox="0 0 {width} 120" style="max-width: {width}px; width: 100%" '
        f'role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg><figcaption>{caption}</figcaption></figure>'
    )


def _nice_step(span: float) -> float:
    rough = span / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _mean(arm: dict[str, Any]) -> str:
    return f"{arm['mean']:.4f}" + (f" ± {arm['std']:.4f}" if arm["std"] is not None else "")


def _verdict(comparison: Comparison) -> str:
    if comparison.evidence is None or comparison.evidence not in evidence_slugs():
        return ""
    arms = read_evidence(comparison.evidence)["methods"]
    return next(arm["verdict"] for arm in arms if arm["name"] == comparison.experiment)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _card_path(paper: Paper) -> str:
    return f"methods/{paper.slug}.md"


# ---- API


def api(room: str) -> str:
    """The page of a room."""
    stub = (ROOMS / room / "__init__.pyi").read_text()
    names = [f"::: leyden.{room}.{file}.{name}" for file, name in EXPORT.findall(stub)]
    return "\n\n".join([f"# leyden.{room}", f"{ROOM_TEXTS.get(room, '').capitalize()}.", *names, ""])


def _rooms() -> list[str]:
    """Rooms that export something, from the bottom up where they are known."""
    found = [path.parent.name for path in ROOMS.glob("*/__init__.pyi") if EXPORT.search(path.read_text())]
    order = list(ROOM_TEXTS)
    return sorted(found, key=lambda room: (order.index(room) if room in order else len(order), room))


def _module_of(part: str) -> str:
    _, room, name = part.split(".")
    stub = (ROOMS / room / "__init__.pyi").read_text()
    file = next(file for file, exported in EXPORT.findall(stub) if exported == name)
    return f"leyden.{room}.{file}.{name}"
