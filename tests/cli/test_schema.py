import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import leyden
from leyden.cli import main
from leyden.cli.config import plain, read_config

CONFIGS = Path(leyden.__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    assert main(["schema", "--output", str(path)]) == 0
    schema = json.loads(path.read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


@pytest.fixture(scope="module")
def errors(schema):
    validator = jsonschema.Draft7Validator(schema)
    return lambda config: [error.json_path for error in validator.iter_errors(config)]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_config_is_valid(path, errors):
    assert errors(plain(read_config(path))) == []


GOOD = """
{base: supervised/digits, trainer: {callbacks: {EMA: {decay: 0.9}, ProgressBar: null, EMA_2: {decay: 0.5}}}}
{trainer: {callbacks+: [leyden.callbacks.EMA], plugins+: leyden.plugins.AtomicCheckpointIO}}
{trainer: {callbacks+: [{class_path: mine.Callback, init_args: {anything: 1}}]}}
{model: {init_args: {network: {init_args: {width: 8}}}}}
{model: {init_args: {network: {class_path: leyden.models.pretrained, init_args: {network: leyden.models.MLP}}}}}
{model: {init_args: {optimizer: mine.Optimizer, scheduler: null}}}
{stages: {a: {set: {trainer.max_epochs: 1}, gives: [network]}, b: {rounds: 2, stages: {c: null}}}}
"""
BAD = """
{base: 3}
{trainer: {callbacks: {EMA: {deccay: 0.9}}}}
{trainer: {callbacks: {EMA_2: {deccay: 0.9}}}}
{trainer: {callbacks+: [leyden.callbacks.EMMA]}}
{trainer: {callbacks+: [leyden.models.MLP]}}
{trainer: {callbacks+: [{class_path: leyden.callbacks.EMA, decay: 0.9}]}}
{trainer: {callbacks+: [{class_path: leyden.callbacks.EMA, init_args: {decay: much}}]}}
{trainer: {max_epoch: 3}}
{trainer: {precision: 17}}
{max_epochs: 3}
{data: {init_args: {batch_size: 6.5}}}
{model: leyden.callbacks.EMA}
{model: {init_args: {network: {class_path: leyden.models.MLP, init_args: {x: 1}}}}}
{data: {class_path: leyden.data.Digits, init_args: {batch_size: 6.5}}}
{stages: {}}
{stages: {a: {run: train}}}
{stages: {a: {give: [network]}}}
"""


@pytest.mark.parametrize("text", GOOD.split("\n")[1:-1])
def test_good(text, errors):
    assert errors(yaml.safe_load(text)) == []


@pytest.mark.parametrize("text", BAD.split("\n")[1:-1])
def test_bad(text, errors):
    assert errors(yaml.safe_load(text)) != []


def test_says_what_arguments_are_for_and_their_defaults(schema):
    decay = schema["definitions"]["arguments:leyden.callbacks.ema.EMA"]["properties"]["decay"]
    assert decay == {
        "type": "number",
        "default": 0.999,
        "description": "share of the old average that an update keeps.",
    }
    paths = schema["definitions"]["path:lightning.pytorch.callbacks.callback.Callback"]["anyOf"]
    (ema,) = [path for path in paths if path.get("const") == "leyden.callbacks.EMA"]
    assert ema["description"].startswith("Keeps an average of the weights")
    assert "supervised/digits" in schema["else"]["else"]["properties"]["base"]["anyOf"][0]["enum"]


@pytest.mark.parametrize(
    ("room", "base"),
    [
        ("callbacks", "lightning.pytorch.callbacks.callback.Callback"),
        ("data", "lightning.pytorch.core.datamodule.LightningDataModule"),
        ("methods", "lightning.pytorch.core.module.LightningModule"),
        ("optim", "torch.optim.optimizer.Optimizer"),
    ],
)
def test_every_class_of_a_room_can_stand_in_its_place(schema, room, base):
    from importlib import import_module
    from inspect import isabstract, isclass

    where, _, name = base.rpartition(".")
    kind = getattr(import_module(where), name)
    module = import_module(f"leyden.{room}")
    public = {f"leyden.{room}.{name}" for name in module.__all__}
    parts = {path: getattr(module, path.rsplit(".", 1)[1]) for path in public}
    wanted = {path for path, part in parts.items() if isclass(part) and issubclass(part, kind) and not isabstract(part)}
    assert wanted
    assert wanted <= {path.get("const") for path in schema["definitions"][f"path:{base}"]["anyOf"]}


def test_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr("leyden.cli.config_schema.config_schema", lambda: {"a": 1})
    assert main(["schema", "--output=-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": 1}
