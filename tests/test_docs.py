"""The pages of docs/ do what they say: ``bash`` and ``python`` blocks run one after another in one new folder.

Trainings are made small. A block that only shows something (what needs an account, a cluster or minutes) is a
``console`` or ``text`` block.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from leyden.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^(?:`([\w/.-]+)`\n\n)?```(\w+)\n(.*?)^```$", re.M | re.S)
TINY = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
TINY += ["trainer.limit_test_batches=1", "trainer.log_every_n_steps=1"]
SMALL = {
    "compare": ["--seeds=1", "--set", *TINY],
    "fit": ["-c", "trainer/quick"],
    "run": ["--set", *TINY],
    "sweep": ["--runs=1", "--set", *TINY],
}
RUN: list[list[str]] = []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).with_suffix("").as_posix())
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_QUIET", "true")
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
    if words[1] in ("compare", "sweep") and words in RUN:
        return  # on another page, in processes of its own
    RUN.append(words)
    goes_on = any(word.startswith("--resume") for word in words)
    try:
        code = main([*words[1:], *([] if goes_on else SMALL.get(words[1], []))])
    except SystemExit as stop:  # of argparse
        code = stop.code or 0
    assert code == 0, shlex.join(words)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="MkDocs is not installed: pip install 'leyden[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "site/methods/elr/index.html").read_text()
    assert "EarlyLearningRegularization" in card
    assert "<svg" in card
    assert 'id="leyden.losses.elr.elr_loss"' in (tmp_path / "site/api/losses/index.html").read_text()
    assert "fonts.googleapis.com" not in card  # a reader's browser fetches nothing from elsewhere
