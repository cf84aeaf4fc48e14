import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from leyden.cli.config import ConfigError, config_folder
from leyden.cli.run_folder import RunFolder, experiment_name, run_of_checkpoint

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_name_is_the_time_and_unique():
    runs = [RunFolder.new("family/paper", None, {}) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        assert run.path.is_dir()
        assert re.fullmatch(r"logs/family/paper/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d)?", run.path.as_posix())


def test_given_name_and_taken_name():
    run = RunFolder.new("default", "first", {})
    assert run.path == Path("logs/default/first")
    assert run.label == "default/first"
    assert RunFolder.new("default", "first", {}).path == run.path  # nothing to lose yet
    run.checkpoints.mkdir()
    run.last_checkpoint.touch()
    with pytest.raises(ConfigError, match="has checkpoints .* 'leyden fit --resume logs/default/first'"):
        RunFolder.new("default", "first", {})


def test_processes_started_by_lightning_get_the_folder_of_the_first():
    environment = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "LEYDEN_RUN_DIR": "logs/x/y"}
    assert RunFolder.new("default", None, environment).path == Path("logs/x/y")
    # left over from another run that started this one: not for a first process
    assert RunFolder.new("default", None, {"LEYDEN_RUN_DIR": "logs/x/y"}).path.parent == Path("logs/default")


def test_outside_launchers_give_all_processes_one_name():
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1"}
    assert RunFolder.new("default", None, slurm).path.name == "slurm-77-1"
    many_nodes = TORCHRUN | {"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "job9"}
    assert RunFolder.new("default", None, many_nodes).path.name == "job9"


def test_torchrun_on_one_node_names_the_run_by_its_own_start():
    script = (
        "import json, sys; from leyden.cli.run_folder import RunFolder\n"
        "print(RunFolder.new('default', None, json.loads(sys.argv[1])).path.name)"
    )
    command = [sys.executable, "-c", script, json.dumps(TORCHRUN)]
    names = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(names) == 1  # the parent of both is this process
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_{os.getpid()}\n", names.pop())


@pytest.mark.parametrize(("environment", "num_nodes"), [({"RANK": "1", "WORLD_SIZE": "2"}, 1), ({}, 2)])
def test_processes_that_cannot_agree_need_a_name(environment, num_nodes):
    with pytest.raises(ConfigError, match="give one with --name"):
        RunFolder.new("default", None, environment, num_nodes)
    assert RunFolder.new("default", "mine", environment, num_nodes).path.name == "mine"


def test_empty_folders_are_taken_away_again():
    full, empty = RunFolder.new("a", "full", {}), RunFolder.new("b/c", "empty", {})
    full.config.touch()
    empty.checkpoints.mkdir()
    full.discard_if_empty()
    empty.discard_if_empty()
    assert full.config.is_file()
    assert os.listdir("logs") == ["a"]


def test_experiment_is_named_after_its_file():
    configs = config_folder()
    paper = configs / "experiment/family/paper.yaml"
    assert experiment_name([]) == "default"
    assert experiment_name([configs / "data/wine.yaml"]) == "default"
    assert experiment_name([paper, configs / "trainer/cpu.yaml"]) == "family/paper"
    assert experiment_name([paper, Path("mine.yaml")]) == "mine"
    assert experiment_name([Path("logs/family/paper/2026/config.yaml")]) == "family/paper"


def test_run_of_a_checkpoint(tmp_path):
    run = RunFolder.new("default", "first", {})
    checkpoint = str(run.checkpoints / "best.ckpt")
    assert run_of_checkpoint(checkpoint) is None
    run.config.touch()
    assert run_of_checkpoint(checkpoint).path == run.path
    assert run_of_checkpoint(str(run.path / "best.ckpt")) is None
