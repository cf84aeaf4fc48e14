"""The stages of a ``leyden run`` as a table: what each gave, and how long it took."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["stages_section"]

RECORDS = "stages.json"


def stages_section(folders: Sequence[Path]) -> str:
    """Makes a table of all stages, also of those that leave no run folder; empty if no folder has stages.

    Args:
        folders: as they were named.
    """
    parts = [_table(folder) for folder in folders if (folder / RECORDS).is_file()]
    return "\n".join(["<h2>Stages</h2>", *parts]) if parts else ""


def _table(folder: Path) -> str:
    rows = []
    for label, record in json.loads((folder / RECORDS).read_text())["stages"].items():
        given = {name: value for name, value in record.get("gives", {}).items() if not isinstance(value, str)}
        tested = {k: v for k, v in record.get("metrics", {}).items() if k.startswith("test/") and k not in given}
        numbers = ", ".join(f"{escape(name)} {value:.4f}" for name, value in (given | tested).items())
        files = ", ".join(name for name, value in record.get("gives", {}).items() if isinstance(value, str))
        seconds = f"{record['seconds']:.1f} s" if "seconds" in record else str(record.get("state", "?"))
        cells = "".join(f"<td>{cell}</td>" for cell in (escape(seconds), numbers, escape(files)))
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    head = "<tr><th>stage</th><th>time</th><th>numbers</th><th>files</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
