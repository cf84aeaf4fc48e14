"""Every config file of the repository is parsed against the real signatures."""

import pytest
import yaml

from leyden.cli import main
from leyden.cli.config import config_folder, read_config

FILES = sorted(
    path
    for path in config_folder().glob("*/**/*.yaml")
    if not {"stages", "sweep"} & set(path.parts) and "stages" not in read_config(path)
)  # those are no configs


def resolved(capsys, *arguments):
    assert main(["fit", *arguments, "--print_config"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(config_folder()).as_posix() for path in FILES])
def test_file_fits_the_signatures(path, capsys):
    config = yaml.safe_load(resolved(capsys, "-c", str(path)))
    assert config["standalone"] is True
    plugins = {plugin["class_path"] for plugin in config["trainer"]["plugins"]}  # either writes files as a whole
    assert plugins & {"leyden.plugins.AtomicCheckpointIO", "leyden.plugins.LazyAsyncCheckpointIO"}


def test_default_is_complete_and_printing_it_is_a_fixed_point(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = resolved(capsys)
    (tmp_path / "whole.yaml").write_text(printed)
    assert resolved(capsys, "-c", "whole.yaml") == printed
    assert [path.name for path in tmp_path.iterdir()] == ["whole.yaml"]  # no run folder
    config = yaml.safe_load(printed)
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-3
    assert config["trainer"]["plugins"] == [{"class_path": "leyden.plugins.AtomicCheckpointIO"}]
    # the first must come before everything that draws random numbers, the last after everything that it saves
    callbacks = [item["class_path"].rsplit(".", 1)[1] for item in config["trainer"]["callbacks"]]
    assert callbacks[0] == "ExactResume"
    assert {"EMA", "LastCheckpoint", "ModelCheckpoint", "LearningRateMonitor"} <= set(callbacks)


def test_options_win_over_files_and_later_files_over_earlier(tmp_path, capsys):
    for name, epochs in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"trainer: {{max_epochs: {epochs}}}")
    files = ["-c", str(tmp_path / "one.yaml"), "--config", str(tmp_path / "two.yaml")]
    assert yaml.safe_load(resolved(capsys, *files))["trainer"]["max_epochs"] == 2
    printed = resolved(capsys, "--trainer.max_epochs=3", *files, "--trainer.callbacks.EMA.decay", "0.5")
    trainer = yaml.safe_load(printed)["trainer"]
    assert trainer["max_epochs"] == 3
    ema = next(item for item in trainer["callbacks"] if item["class_path"] == "leyden.callbacks.EMA")
    assert ema["init_args"]["decay"] == 0.5


def test_values_of_options_take_the_type_of_their_argument(capsys):
    printed = resolved(
        capsys,
        "--model.optimizer.lr=1e-4",
        "--trainer.logger.WandbLogger.project=2026",
        "--trainer.logger.WandbLogger.tags=[a, b]",
        "--model.optimizer.betas=[0.9, 0.95]",
        "--test_after_fit=false",
        "--seed_everything=7",
    )
    config = yaml.safe_load(printed)
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["model"]["init_args"]["optimizer"]["init_args"]["betas"] == [0.9, 0.95]
    wandb = next(item["init_args"] for item in config["trainer"]["logger"] if "Wandb" in item["class_path"])
    assert (wandb["project"], wandb["tags"]) == ("2026", ["a", "b"])
    assert config["test_after_fit"] is False
    assert config["seed_everything"] == 7


def test_parameter_groups_of_files_and_options_are_merged(tmp_path, capsys):
    (tmp_path / "groups.yaml").write_text(
        "model: {init_args: {param_groups: {'*.bias': {weight_decay: 0.0}, 'network.head.*': {lr_scale: 1e-1}}}}"
    )
    more = "--model.param_groups={'network.head.*': {lr_scale: 0.5}, '*norm*': {weight_decay: 0.0}}"
    printed = resolved(capsys, "-c", str(tmp_path / "groups.yaml"), more)
    assert list(yaml.safe_load(printed)["model"]["init_args"]["param_groups"].items()) == [
        ("*.bias", {"weight_decay": 0.0}),
        ("network.head.*", {"lr_scale": 0.5}),
        ("*norm*", {"weight_decay": 0.0}),
    ]
