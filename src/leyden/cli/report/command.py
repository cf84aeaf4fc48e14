"""Writes the page of a run, or of several side by side."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from leyden.cli.config import ConfigError
from leyden.cli.report.page import render_page
from leyden.cli.report.saved_run import find_runs, read_run
from leyden.cli.report.stages_table import stages_section
from leyden.cli.run_folder import LOGS, RunFolder
from leyden.core.replace_file import replace_file

__all__ = ["PAGE", "report", "write_report"]

PAGE = "report.html"


def report(argv: Sequence[str]) -> int:
    """Writes a page about the runs that are named.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(
        prog="leyden report",
        description="Writes one self-contained HTML page: curves, the test in pictures, config and environment of a "
        "run, or of several side by side. A folder of 'leyden run' stands for its stages.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="folder of a run, or of a 'leyden run'")
    parser.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the folder)")
    arguments = parser.parse_args(list(argv))
    folders: list[Path] = arguments.runs
    try:
        target = arguments.output or _target(folders)
        size = write_report(folders, target)
    except (ConfigError, OSError) as error:
        print(f"leyden: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"leyden: {target} ({size / 1024:.0f} KB)")
    return 0


def write_report(folders: Sequence[Path], target: Path, *, title: str | None = None) -> int:
    """Writes a page, in one stroke.

    Args:
        folders: of runs; that of a ``leyden run`` stands for its stages.
        target: the page.
        title: heading; names the runs if None.

    Returns:
        Size of the page in bytes.

    Raises:
        ConfigError: a folder is none of a run, or cannot be read; nothing is written.
    """
    paths = find_runs(folders)
    names = _names(paths)
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    heading = title or ", ".join(RunFolder(folder).label for folder in folders)
    page = render_page(runs, title=heading, stages=stages_section(folders)).encode()
    with replace_file(target) as file:
        file.write(page)
    return len(page)


def _target(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / PAGE
    name = "-".join(RunFolder(folder).label.replace("/", "_").strip("._") for folder in folders)
    return LOGS / "report" / f"{name[:120]}.html"


def _names(paths: Sequence[Path]) -> list[str]:
    """The paths without what all of them begin with."""
    if len(paths) == 1:
        return [RunFolder(paths[0]).label]
    whole = [path.resolve() for path in paths]
    common = Path(os.path.commonpath(whole))
    return [path.relative_to(common).as_posix() for path in whole]
