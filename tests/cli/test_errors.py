"""Mistakes in configs and options: one line that says where, what, and what it may be."""

import pytest

from leyden.cli import main

EMA = "leyden.callbacks.EMA"
FILES = {
    "plain list": (
        f"trainer:\n  callbacks:\n    - class_path: {EMA}",
        "file.yaml:2: a plain 'callbacks:' would drop what was there before (",
    ),
    "argument": (
        f"trainer:\n  callbacks+:\n    - class_path: {EMA}\n      init_args: {{deccay: 0.9}}",
        f"'deccay' is not an argument of {EMA}; did you mean 'decay'? (it may be decay, warmup",
    ),
    "nested argument": (
        "model:\n  init_args:\n    optimizer:\n      class_path: torch.optim.SGD\n      init_args: {lrr: 1}",
        "file.yaml:5: model.optimizer: 'lrr' is not an argument of torch.optim.SGD; did you mean 'lr'?",
    ),
    "argument without class": (
        "model:\n  init_args: {netwrk: 3}",
        "file.yaml:2: model: 'netwrk' is not an argument of leyden.methods.Classification; did you mean 'network'?",
    ),
    "argument beside class": (
        f"trainer:\n  callbacks+:\n   - class_path: {EMA}\n     decay: 0.9",
        "beside class_path stand only init_args and dict_kwargs",
    ),
    "trainer argument": (
        "trainer:\n  max_epoch: 3",
        "file.yaml:2: trainer: 'max_epoch' is not an argument of the Trainer; did you mean 'max_epochs'?",
    ),
    "empty argument": ("trainer: {max_epoch: {}}", "trainer: 'max_epoch' is not an argument of the Trainer"),
    "top-level key": ("trainr: {}", "file.yaml:1: 'trainr' is no top-level key; did you mean 'trainer'?"),
    "class": (
        "trainer:\n  callbacks+:\n    - class_path: leyden.callbacks.EMAA",
        "there is no 'EMAA' in leyden.callbacks; did you mean leyden.callbacks.EMA?",
    ),
    "module": (
        "model:\n  init_args:\n    network:\n      class_path: leyden.model.ConvNet",
        "file.yaml:4: model.network: there is no module 'leyden.model'; did you mean leyden.models.ConvNet?",
    ),
    "class without path": (
        "model: {class_path: Clasification}",
        "class_path 'Clasification' is no import path, such as package.module.Name; "
        "did you mean leyden.methods.Classification?",
    ),
    "class of another kind": (
        "model:\n  init_args:\n    network:\n      class_path: torch.optim.SGD\n      init_args: {lr: 1}",
        "file.yaml:4: model.network: torch.optim.SGD is not Network",
    ),
    "item of another kind": (
        "trainer:\n  callbacks+: [leyden.models.MLP]",
        "file.yaml:2: trainer.callbacks[",
    ),
    "type": ("trainer:\n  max_epochs: abc", "file.yaml:2: trainer.max_epochs: 'abc' is not int or None"),
    "nested type": (
        f"trainer:\n  callbacks+:\n    - class_path: {EMA}\n      init_args: {{decay: high}}",
        "decay: 'high' is not float",
    ),
    "missing argument": (
        "model:\n  init_args:\n    network:\n      class_path: leyden.models.MLP",
        "file.yaml:4: model.network: leyden.models.MLP needs a value for in_features, num_outputs",
    ),
    "stages": ("stages:\n  one: {}", "file.yaml:1: stages of several fits are run by leyden run FILE"),
    "yaml": ("trainer: {max_epochs: 1", "file.yaml:1: no valid YAML"),
    "key twice": ("trainer: {max_epochs: 1}\ntrainer: {}", "file.yaml:2: the key 'trainer' is given twice"),
}
OPTIONS = {
    "--max_epochs=3": "command line: 'max_epochs' is no top-level key; did you mean trainer.max_epochs?",
    "--trainer.max_epoch=3": "command line: trainer: 'max_epoch' is not an argument of the Trainer",
    "--trainer.callbacks.EMMA.decay=1": "trainer.callbacks has no 'EMMA'; did you mean 'EMA'?",
    "--trainer.callbacks.EMA.decay=x": "decay: 'x' is not float",
    "--data=leyden.data.Wime": "command line: data: there is no 'Wime' in leyden.data; did you mean leyden.data.Wine?",
    "--trainer.precision=17": "command line: trainer.precision: '17' is not ",
    "--seed_everything=x": "command line: seed_everything: 'x' is not bool or int",
    "--test_after_fit=maybe": "command line: test_after_fit: 'maybe' is not bool",
    "--config=datta/wine": "there is no config file 'datta/wine'; did you mean data/wine",
    "--resume=nothing": "--resume: nothing is no run folder, it has no config.yaml",
}
CALLS = {
    ("fit.yaml",): "'fit.yaml' is no option; options are --KEY=VALUE, a config file is given by -c fit.yaml",
    ("--trainer.max_epochs",): "--trainer.max_epochs needs a value",
    ("--trainer.max_epochs", "--debug"): "--trainer.max_epochs needs a value",
    ("--name=a", "--name=b"): "--name is given twice",
    ("--name=a", "--resume=b"): "--resume goes on in the folder of the run: it takes no --name",
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def the_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("leyden: error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 500
    return captured.err


@pytest.mark.parametrize("mistake", FILES)
def test_mistakes_in_files(mistake, tmp_path, capsys):
    text, expected = FILES[mistake]
    (tmp_path / "file.yaml").write_text(text)
    assert main(["fit", "-c", "file.yaml"]) == 1
    line = the_line(capsys)
    assert expected in line
    assert "file.yaml:" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.parametrize("argument", OPTIONS)
def test_mistakes_in_options(argument, capsys):
    assert main(["fit", argument]) == 1
    assert OPTIONS[argument] in the_line(capsys)


@pytest.mark.parametrize("arguments", CALLS)
def test_wrong_calls(arguments, capsys):
    assert main(["fit", *arguments]) == 2
    assert CALLS[arguments] in the_line(capsys)


def test_debug_shows_the_traceback(capsys):
    assert main(["fit", "--trainer.max_epochs=x", "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "leyden: error: command line: trainer.max_epochs: 'x' is not int or None" in error.splitlines()[-1]


def test_help_is_printed(capsys):
    assert main(["fit", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--resume FOLDER" in printed
    assert "--trainer.max_epochs" in printed
    assert main(["test", "--model.help", "leyden.methods.Classification"]) == 0
    printed = capsys.readouterr().out
    assert "--resume FOLDER" not in printed
    assert "--model.network" in printed
    assert main(["fit", "--model.help=no.such.Class"]) == 1
