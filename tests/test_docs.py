"""The pages of docs/how-to do what they say: ``bash`` and ``python`` blocks run one after another in one new folder.

A block that only shows something is a ``console`` or ``text`` block.
"""

import re
import shlex
from pathlib import Path

import pytest

from leyden.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^(?:`([\w/.-]+)`\n\n)?```(\w+)\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for file, language, text in BLOCK.findall(page.read_text()):
        if file:  # a path in backticks above the block: the file is written
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text)
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                _run(shlex.split(line, comments=True))
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)


def _run(words):
    if not words or words[0] == "pip":
        return
    assert words[0] == "leyden", f"only leyden and pip are commands of a bash block, got {words[0]!r}"
    try:
        code = main(words[1:])
    except SystemExit as stop:  # of argparse
        code = stop.code or 0
    assert code == 0, shlex.join(words)
