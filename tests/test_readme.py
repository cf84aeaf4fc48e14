"""The README does what it says."""

import re
import runpy
import shlex
from pathlib import Path

import leyden.callbacks
from leyden.cli import main
from leyden.cli.config import find_config
from leyden.cli.sweep_file import find_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def files(text):
    """Named code blocks: a line with a path in backticks, then the block."""
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", text, re.M | re.S))


def test_a_method_in_five_minutes(tmp_path, monkeypatch):
    blocks = files(section("Add a method in five minutes"))
    assert sum(bool(line.strip()) for text in blocks.values() for line in text.splitlines()) <= 40
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    source, experiment, test = (tmp_path / name for name in blocks)
    monkeypatch.setattr(leyden.callbacks, "__path__", [*leyden.callbacks.__path__, str(source.parent)])
    tests = [value for name, value in runpy.run_path(str(test)).items() if name.startswith("test_")]
    assert tests
    for function in tests:
        function()
    monkeypatch.chdir(tmp_path)
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "-c", "logger/csv", "--name", "readme"]
    assert main(["fit", "-c", str(experiment), *quick, "--trainer.log_every_n_steps=1"]) == 0
    log = next((tmp_path / "logs").rglob("metrics.csv")).read_text()
    assert "train/confidence_penalty" in log


def test_the_commands_parse(capsys):
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("leyden ")]
    assert len(commands) >= 4
    for _, command, *arguments in commands:
        if command in ("papers", "show"):
            assert main([command, *arguments]) == 0
        elif command == "compare":
            assert all(find_config(name).is_file() for name in arguments[:2])
        elif command == "run":
            assert (ROOT / arguments[0]).is_file()
        elif command == "sweep":
            assert find_sweep(arguments[0]).is_file()
        elif "NAME" not in " ".join(arguments):
            assert main([command, *arguments, *([] if "--print_config" in arguments else ["--print_config"])]) == 0


def test_the_error_is_the_one_that_is_printed(capsys):
    command, *printed = re.search(r"```\n\$ leyden (.*?)```", README, re.S)[1].splitlines()
    assert main(shlex.split(command)) == 1
    assert " ".join(capsys.readouterr().err.split()) == " ".join(" ".join(printed).split())


def test_the_yaml_of_an_experiment_trains(tmp_path, monkeypatch):
    text = re.search(r"```yaml\n(.*?)```", section("Anatomy of an experiment"), re.S)[1]
    (tmp_path / "slower.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "-c", "logger/csv", "--name", "readme"]
    assert main(["fit", "-c", "slower.yaml", *quick, "--trainer.log_every_n_steps=1"]) == 0
