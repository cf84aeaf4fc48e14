import shutil
import subprocess
import sys

import pytest

from leyden.cli import COMMANDS, main
from leyden.cli.completion import complete


@pytest.mark.parametrize(
    ("typed", "some", "others"),
    [
        ("", ["fit", "papers", "--version"], ["supervised/digits"]),
        ("fi", ["fit"], ["papers"]),
        ("fit -c sup", ["supervised/digits", "supervised/text"], ["regularization/elr", "stages/distillation"]),
        ("fit -c data/", ["data/wine"], ["model/mlp"]),
        ("fit --", ["--config", "--name", "--resume", "--debug", "--trainer.max_epochs=", "--help"], ["--to"]),
        ("fit --model.network", ["--model.network=", "--model.network.width="], ["--trainer.max_epochs="]),
        ("fit -c supervised/wine --model.network.h", ["--model.network.hidden="], ["--model.network.width="]),
        ("fit --trainer.callbacks.EM", ["--trainer.callbacks.EMA.decay="], []),
        ("fit -c nothing --trainer.m", [], ["--trainer.max_epochs="]),
        ("test --", ["--config", "--print_config"], ["--resume"]),
        ("predict --", ["--to", "--output", "--config"], ["--name"]),
        ("export --", ["--to", "--output", "--debug"], ["--trainer.max_epochs="]),
        ("compare sup", ["supervised/digits"], ["stages/distillation"]),
        ("run ", ["distillation"], ["supervised/digits"]),
        ("check ", ["distillation", "supervised/digits"], []),
        ("show el", ["elr"], ["ema"]),
        ("new ", ["regularizer", "method"], []),
        ("nothing --", [], ["--help"]),
    ],
)
def test_words(typed, some, others):
    found = complete(typed.split(" "))
    assert set(some) <= set(found)
    assert not set(others) & set(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options(command):
    assert "--help" in complete([command, "--"])


def test_no_torch():
    code = """
import sys
from leyden.cli import main
for words in (["fit", "-c", ""], ["fit", "--"], ["compare", "--"], ["export", "--"], ["show", ""], ["new", ""]):
    assert main(["completion", "words", "--", *words]) == 0
assert not {"torch", "lightning", "numpy", "jsonargparse"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_script(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if shutil.which(shell) is None:
        assert "compdef _leyden leyden" in script
        return
    subprocess.run([shell, "-n", "-c", script], check=True)


@pytest.mark.parametrize(
    ("typed", "expected"), [("fi", "fit"), ("fit -c supervised/di", "supervised/diabetes supervised/digits")]
)
def test_in_bash(typed, expected, capsys):
    assert main(["completion", "bash"]) == 0
    words = ["leyden", *typed.split(" ")]
    script = f'leyden() {{ {sys.executable} -m leyden.cli "$@"; }}; compopt() {{ :; }}\n{capsys.readouterr().out}\n'
    script += f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _leyden; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
