"""Sweep files: what their entries mean, and what is wrong with them."""

import math
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from leyden.cli import main
from leyden.cli.config import ConfigError, config_folder
from leyden.cli.sweep_file import find_sweep, read_sweep

FILES = sorted((config_folder() / "sweep").resolve().glob("*.yaml"))
SWEEP = {
    "command": ["leyden", "fit", "-c", "supervised/digits", "--trainer.max_epochs=2", "${args}"],
    "method": "bayes",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"model.optimizer.lr": {"min": 0.001, "max": 0.1}},
}


def write(**changes):
    content = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    Path("sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Path("sweep.yaml")


def parameter(**description):
    (found,) = read_sweep(write(parameters={"a.b": description})).parameters
    return found


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_read_and_wandb_makes_the_same_command(path, capsys):
    sweep = read_sweep(path)
    theirs = yaml.safe_load(path.read_text())
    assert theirs["parameters"].keys() == {parameter.key for parameter in sweep.parameters}

    values = {}
    for found in sweep.parameters:
        ours = found.text(found.low) if found.choices is None else found.choices[-1]
        values[found.key] = {"value": yaml.safe_load(ours)}
    replaced = create_sweep_command_args({"args": values})
    command = [
        part for word in create_sweep_command(theirs["command"]) for part in replaced.get(str(word)[2:-1], [word])
    ]
    assert command[0] == "leyden"
    assert main([*command[1:], "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    options = [f"--{key}={found['value']}" for key, found in values.items()]
    files = [word for name in sweep.arguments.config for word in ("-c", name)]
    assert main(["fit", *files, *options, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == printed


def test_the_parts_of_a_file():
    sweep = read_sweep(write(early_terminate={"type": "hyperband", "min_iter": 2}, run_cap=7, project="mine"))
    assert sweep.arguments.config == ["supervised/digits"]
    assert sweep.arguments.options == [("trainer.max_epochs", "2")]
    assert (sweep.method, sweep.metric, sweep.mode, sweep.run_cap) == ("bayes", "val/loss", "min", 7)
    assert sweep.early == (2, 3)
    assert read_sweep(write(early_terminate={"type": "hyperband", "max_iter": 27, "s": 2})).early == (3, 3)
    maximized = read_sweep(write(metric={"name": "val/accuracy", "goal": "maximize", "target": 0.9}))
    assert (maximized.mode, maximized.target) == ("max", 0.9)


def test_grid():
    sweep = read_sweep(
        write(
            method="grid",
            parameters={
                "a": {"values": [True, None, "gelu", [64, 64]]},
                "b": {"min": 1, "max": 3},
                "c": {"distribution": "q_uniform", "min": 0.0, "max": 0.3, "q": 0.1},
                "d": {"value": 1e-05},
            },
        )
    )
    choices = {found.key: found.choices for found in sweep.parameters}
    assert choices == {
        "a": ("true", "null", "gelu", "[64, 64]"),
        "b": ("1", "2", "3"),
        "c": ("0.0", "0.1", "0.2", "0.3"),
        "d": ("1e-05",),
    }
    grid = sweep.grid()
    assert len(grid) == 4 * 3 * 4
    assert grid[0] == {"a": "true", "b": "1", "c": "0.0", "d": "1e-05"}
    assert grid[1] == {"a": "true", "b": "1", "c": "0.1", "d": "1e-05"}


def test_ranges():
    found = parameter(min=0, max=3)
    assert (found.low, found.high, found.whole, found.text(2)) == (0, 3, True, "2")
    found = parameter(min=0.0, max=3)
    assert (found.whole, found.log, found.text(0.1)) == (False, False, "0.1")
    found = parameter(distribution="log_uniform_values", min=0.001, max=0.1)
    assert (found.low, found.high, found.log) == (0.001, 0.1, True)
    # exponents of e
    found = parameter(distribution="log_uniform", min=-2, max=0)
    assert (found.low, found.high, found.log) == (math.exp(-2), 1.0, True)
    found = parameter(distribution="inv_log_uniform", min=1, max=2)
    assert (found.low, found.high) == (math.exp(-2), math.exp(-1))
    found = parameter(distribution="q_log_uniform_values", min=8, max=200, q=8)
    assert [found.text(drawn) for drawn in (8.0, 13.0, 199.0)] == ["8", "16", "200"]
    found = parameter(distribution="q_uniform", min=0, max=1, q=0.1)
    assert [found.text(drawn) for drawn in (0.26, 0.3, 0.7)] == ["0.3", "0.3", "0.7"]


def test_normal_distributions():
    # of a standard normal variable 97.725 % lie below 2
    found = parameter(distribution="normal", mu=10, sigma=3)
    assert [float(found.text(share)) for share in (0.5, 0.9772499)] == pytest.approx([10, 16])
    assert found.low == pytest.approx(1 - found.high)
    found = parameter(distribution="log_normal", mu=0, sigma=1)
    assert [float(found.text(share)) for share in (0.5, 0.9772499)] == pytest.approx([1, math.e**2])
    assert parameter(distribution="q_normal", mu=0, sigma=1, q=0.5).text(0.9772499) == "2.0"
    assert float(parameter(distribution="normal").text(0.5)) == pytest.approx(0, abs=1e-12)


MISTAKES = {
    "unknown key": ({"parameter": {}}, "there is no key 'parameter'; did you mean 'parameters'?"),
    "no metric": ({"metric": None}, "a sweep needs the key 'metric'"),
    "no command": ({"command": None}, "a sweep needs the key 'command'"),
    "method": ({"method": "genetic"}, "sweep.yaml:8: method may be grid, random, bayes, got 'genetic'"),
    "goal": ({"metric": {"name": "a", "goal": "min"}}, "goal may be minimize or maximize, got 'min'"),
    "no args": ({"command": ["leyden", "fit"]}, "command must be a list such as"),
    "another program": ({"command": ["${env}", "python", "train.py", "${args}"]}, "command must be a list such as"),
    "wrong option": ({"command": ["leyden", "fit", "x", "${args}"]}, "command: 'x' is no option"),
    "name": ({"command": ["leyden", "fit", "--name=a", "${args}"]}, "leave out --name and --resume"),
    "no parameters": ({"parameters": {}}, "parameters names nothing to vary"),
    "no mapping": ({"parameters": {"a": 1}}, "a must be a mapping, got 1"),
    "nothing said": ({"parameters": {"a": {"min": 1}}}, "a needs value, values, min and max, or a distribution"),
    "nested": ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "write a.NAME for a nested parameter"),
    "distribution": (
        {"parameters": {"a": {"distribution": "log_unifrom", "min": 1, "max": 2}}},
        "there is no distribution 'log_unifrom'; did you mean 'log_uniform'?",
    ),
    "argument": ({"parameters": {"a": {"min": 1, "max": 2, "mx": 3}}}, "there is no key 'mx'; did you mean 'max'?"),
    "missing": ({"parameters": {"a": {"distribution": "uniform", "min": 1}}}, "uniform of a needs max"),
    "probabilities": (
        {"parameters": {"a": {"values": [1, 2], "probabilities": [0.1, 0.9]}}},
        "there is no key 'probabilities'; there are: distribution, values",
    ),
    "text": ({"parameters": {"a": {"min": "low", "max": 2.0}}}, "min must be a number, got 'low'"),
    "order": ({"parameters": {"a": {"min": 2.0, "max": 1.0}}}, "min of a is greater than its max: 2.0 and 1.0"),
    "not positive": (
        {"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
        "min of a must be positive on a logarithmic scale, got 0",
    ),
    "grid of a range": ({"method": "grid"}, "a grid needs values: model.optimizer.lr has a range"),
    "huge grid": ({"method": "grid", "parameters": {"a": {"min": 0, "max": 10**6}}}, "a has more than 10000 values"),
    "huge product": (
        {"method": "grid", "parameters": {name: {"min": 1, "max": 200} for name in "ab"}},
        "the grid has more than 10000 points",
    ),
    "envelope": ({"early_terminate": {"type": "envelope"}}, "type must be hyperband, got 'envelope'"),
    "brackets": ({"early_terminate": {"type": "hyperband"}}, "needs either min_iter, or max_iter and s"),
    "run_cap": ({"run_cap": 0}, "run_cap must be a whole number from 1 on, got 0"),
    "test": (
        {"metric": {"name": "test/loss"}, "early_terminate": {"type": "hyperband", "min_iter": 1}},
        "early_terminate needs a metric that is logged during training, which test/loss is not",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake):
    changes, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as error:
        read_sweep(write(**changes))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_files():
    assert find_sweep("adamw") == config_folder() / "sweep" / "adamw.yaml"
    with pytest.raises(ConfigError, match=r"there is no sweep file 'adamv'; did you mean adamw\?"):
        find_sweep("adamv")
    with pytest.raises(ConfigError, match="those below .* are adamw, elr"):
        find_sweep("nothing/like/it")
