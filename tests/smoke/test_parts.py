"""Every part of a config parses, and trains where nothing of the user's is needed."""

from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.cli.config import config_folder

KINDS = ("data", "model", "trainer", "logger", "strategy")
PARTS = [f"{kind}/{path.stem}" for kind in KINDS for path in sorted((config_folder() / kind).glob("*.yaml"))]

SMALL_GPT = ("--model.network.dim=16", "--model.network.depth=1", "--model.network.num_heads=2")
# what a part that trains goes with
TRAINS = {
    "data/breast_cancer": ("-c", "model/mlp", "--model.network.in_features=30", "--model.network.num_outputs=2"),
    "data/diabetes": ("-c", "model/mlp_regression"),
    "data/digits": (),
    "data/pydoc_topics": ("-c", "model/gpt", *SMALL_GPT),
    "data/wine": ("-c", "model/mlp"),
    "model/convnet": (),
    "model/gpt": ("-c", "data/pydoc_topics", *SMALL_GPT),
    "model/mlp": ("-c", "data/wine"),
    "model/mlp_regression": ("-c", "data/diabetes"),
    "model/resnet18": ("--model.network.in_channels=1", "--model.network.width=4"),
    "model/vit": (),
    "trainer/cpu": (),
    "trainer/quick": (),
    "logger/csv": (),
    "logger/none": (),
}
# why the others are only parsed
PARSED = {
    "data/cifar10": "needs the user's files",
    "data/csv_table": "needs the user's files",
    "data/huggingface": "needs the user's files",
    "data/huggingface_text": "needs the user's files",
    "data/image_folder": "needs the user's files",
    "data/mnist": "needs the user's files",
    "data/text_file": "needs the user's files",
    "model/timm": "needs timm",
    "model/transformers": "needs transformers, and the user's texts",
    "trainer/ddp_2cpu": "starts processes: tests/distributed",
    "trainer/gpu": "needs a GPU",
    "logger/mlflow": "tests/cli/test_loggers.py",
    "logger/tensorboard": "tests/cli/test_loggers.py",
    "logger/wandb": "tests/cli/test_wandb.py",
    "strategy/ddp": "starts processes: tests/distributed",
    "strategy/ddp_unused_parameters": "starts processes: tests/distributed",
    "strategy/fsdp2": "starts processes: tests/distributed",
    "strategy/deepspeed": "needs DeepSpeed and GPUs",
}


def test_every_part_is_known():
    assert sorted(PARTS) == sorted([*TRAINS, *PARSED])


@pytest.mark.parametrize("part", PARTS)
def test_parses(part, capsys):
    assert main(["fit", "-c", part, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["standalone"] is True


@pytest.mark.parametrize("part", TRAINS)
def test_trains(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "-c", "logger/csv", "-c", "trainer/quick", "-c", part, *TRAINS[part]]
    assert main([*arguments, "--name=smoke", "--trainer.accelerator=cpu", "--debug"]) == 0
    assert Path("logs/default/smoke/checkpoints/best.ckpt").is_file()
