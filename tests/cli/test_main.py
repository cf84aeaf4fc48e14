import subprocess
import sys
from importlib import import_module

import pytest

import leyden
from leyden.cli import COMMANDS, main


def test_help_and_version(capsys):
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed and text in printed for name, (_, text) in COMMANDS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"leyden {leyden.__version__}\n"


def test_unknown_command(capsys):
    assert main(["fitt"]) == 2
    assert capsys.readouterr().err == "leyden: error: there is no command 'fitt'; did you mean 'fit'?\n"
    assert main(["dance"]) == 2
    assert "there are: fit, validate, test" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_of_the_table_leads_somewhere(name):
    module, function = COMMANDS[name][0].split(":")
    assert callable(getattr(import_module(module), function))


def test_help_and_wrong_calls_import_nothing_heavy():
    script = (
        "import sys; from leyden.cli import main\n"
        "codes = [main(['--help']), main(['--version']), main(['fitt']), main(['fit', 'x'])]\n"
        "codes += [main(['fit', '-c', 'x'])]\n"
        "assert codes == [0, 0, 2, 2, 1], codes\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'wandb', 'rich', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
