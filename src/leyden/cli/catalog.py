"""``leyden papers``, ``leyden show`` and ``leyden results``: the catalog in the terminal."""

import json
import shutil
import sys
import textwrap
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from leyden.catalog.evidence import read_evidence
from leyden.catalog.papers import Comparison, Paper, read_paper, search
from leyden.catalog.parts import describe_part
from leyden.cli.config import config_folder, find_config, read_config

__all__ = ["papers", "results", "show"]

MAX_WIDTH = 120


def papers(argv: Sequence[str]) -> int:
    """Lists papers."""
    parser = ArgumentParser(prog="leyden papers", description="Lists the papers of the catalog, or searches them.")
    parser.add_argument("words", nargs="*", help="words that must stand in the record")
    parser.add_argument("--family", help="kind of methods, such as optimization")
    parser.add_argument("--room", help="room of a part, such as callbacks")
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(list(argv))
    return _in_one_line(lambda: _papers(arguments.words, arguments.family, arguments.room, arguments.json))


def show(argv: Sequence[str]) -> int:
    """Prints the card of a paper."""
    parser = ArgumentParser(prog="leyden show", description="Prints the card of a paper.")
    parser.add_argument("slug", help="short name, as 'leyden papers' lists it")
    arguments = parser.parse_args(list(argv))
    return _in_one_line(lambda: print(_card(read_paper(arguments.slug))))


def results(argv: Sequence[str]) -> int:
    """Writes ``docs/results.md`` from the recorded evidence."""
    from leyden.catalog.results import write_results

    parser = ArgumentParser(prog="leyden results", description="Writes docs/results.md from the recorded evidence.")
    parser.parse_args(list(argv))
    path = config_folder().resolve().parent / "docs" / "results.md"
    return _in_one_line(lambda: write_results(path))


def _in_one_line(action: Callable[[], Any]) -> int:
    try:
        action()
    except (ValueError, OSError) as error:
        print(f"leyden: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _width() -> int:
    return min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)


def _papers(words: list[str], family: str | None, room: str | None, as_json: bool) -> None:
    found = search(words, family=family, room=room)
    if as_json:
        print(json.dumps([asdict(paper) for paper in found], indent=1))
        return
    if not found:
        print("no paper has all of these words")
        return
    rows = [(paper.slug, str(paper.year), paper.family, paper.changes) for paper in found]
    sizes = [max(len(row[column]) for row in rows) for column in range(3)]
    left = sum(sizes) + 3 * 2
    for row in rows:
        start = "  ".join(cell.ljust(size) for cell, size in zip(row[:3], sizes, strict=True)) + "  "
        print(textwrap.fill(row[3], max(_width(), left + 20), initial_indent=start, subsequent_indent=" " * left))


def _card(paper: Paper) -> str:
    head = [f"{paper.slug}: {paper.title}", f"{paper.authors}, {paper.year}"]
    if paper.arxiv:
        head.append(f"https://arxiv.org/abs/{paper.arxiv}")
    if paper.code:
        head.append(f"https://github.com/{paper.code}")
    blocks = ["\n".join(head), _fill(paper.changes)]
    blocks.append("\n".join(["Parts", *(_part(path) for path in paper.parts)]))
    blocks += [_comparison(comparison) for comparison in paper.comparisons]
    if paper.notes:
        blocks.append("\n".join(["Notes", *(_fill(note, "  - ") for note in paper.notes)]))
    blocks.append("\n".join(["Tests", *(f"  {path}" for path in paper.tests)]))
    return "\n\n".join(blocks)


def _fill(text: str, start: str = "") -> str:
    return textwrap.fill(text, _width(), initial_indent=start, subsequent_indent=" " * len(start))


def _part(path: str) -> str:
    part = describe_part(path)
    room = path.rsplit(".", 1)[0]
    return f"{_fill(f'{room}.{part.signature}', '  ')}\n{_fill(part.summary, '      ')}"


def _comparison(comparison: Comparison) -> str:
    experiment, baseline = comparison.experiment, comparison.baseline
    path = find_config(f"experiment/{experiment}")
    if "stages" in read_config(path):
        how = ["Run it, or compare it with its baseline", f"  leyden run {experiment}"]
    else:
        how = [
            "Run it, put it on top of your own config, or compare it with its baseline",
            f"  leyden fit -c {experiment}",
            f"  leyden fit -c {experiment} -c YOUR.yaml",
        ]
    lines = [
        f"Experiment {experiment}",
        textwrap.indent(path.read_text().rstrip(), "  "),
        "",
        *how,
        f"  leyden compare {baseline} {experiment} --metric {comparison.metric}",
        "",
        _evidence(comparison),
    ]
    return "\n".join(lines)


def _evidence(comparison: Comparison) -> str:
    if comparison.evidence is None:
        return "Evidence: none yet (leyden compare ... --record NAME)"
    from leyden.cli.compare import source_digest  # the list of papers does not need it

    report = read_evidence(comparison.evidence)
    arm = next(arm for arm in report["methods"] if arm["name"] == comparison.experiment)
    difference, machine = arm["difference"], report["machine"]
    lines = [
        f"Evidence {comparison.evidence}: {arm['verdict']}",
        f"  {report['metric']}: baseline {report['baseline']['mean']:.4f}, method {arm['mean']:.4f}, difference "
        f"{difference['mean']:+.4f}, {difference['n']} seeds",
    ]
    if difference["interval"]:
        intervals = [f"[{low:+.4f}, {high:+.4f}]" for low, high in (difference["interval"], difference["bootstrap"])]
        lines.append(f"  95% interval {intervals[0]} (paired t), {intervals[1]} (bootstrap)")
    if arm["time_ratio"] and arm["memory_ratio"]:
        lines.append(f"  time {arm['time_ratio']:.2f}x, memory {arm['memory_ratio']:.2f}x of the baseline's")
    changed = [side["name"] for side in (report["baseline"], arm) if side["source"] != source_digest(side["name"])]
    if changed:
        lines.append(f"  recorded before the config of {' and '.join(changed)} changed: it may be another now")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines.append(f"  {report['date']}, {machine['accelerator']}, {machine['threads']} thread(s), {versions}")
    return "\n".join(lines)
