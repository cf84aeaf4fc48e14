"""A run of stages that is killed five times, anywhere, ends in the same bits as one that is left alone."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLES = {path.stem: path for path in sorted((CONFIGS / "stages").glob("*.yaml"))}
EXPERIMENTS = {
    path.stem: path for path in sorted((CONFIGS / "experiment").rglob("*.yaml")) if "\nstages:" in path.read_text()
}
SETTINGS = [
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.limit_predict_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.logger.WandbLogger=null",
    "trainer.callbacks.ProgressBar=null",
    "trainer.callbacks.LastCheckpoint.every_n_steps=2",
    "model.network.width=4",
    "model.network.dropout=0.2",
]


class KilledError(Exception):
    pass


class Killer:
    """Counts training batches and files that take their place, and strikes before the one of a given number."""

    def __init__(self, strike, at: int | None = None) -> None:
        self.strike, self.at, self.count = strike, at, 0

    def install(self, patch) -> None:
        replace, batch_start = os.replace, LastCheckpoint.on_train_batch_start
        patch.setattr(os, "replace", lambda *paths: (self.tick(), replace(*paths))[1])
        patch.setattr(LastCheckpoint, "on_train_batch_start", lambda *call: (self.tick(), batch_start(*call))[1])

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.strike()


def stop() -> None:
    raise KilledError


def run_and_kill(folder: Path, arguments: list[str], at: int) -> int:
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        Killer(lambda: os.kill(os.getpid(), signal.SIGKILL), at).install(patch)
        return main(arguments)


@pytest.fixture
def command(shorter_stages, tmp_path, monkeypatch):
    """Arguments that run an example, with fewer rounds and members so that it is quick."""

    def command(example: str, name: str) -> list[str]:
        text = shorter_stages((EXAMPLES | EXPERIMENTS)[example])
        if example == "class_incremental":
            text = text.replace("rounds: 5", "rounds: 2")
        elif example == "soup":
            text = text.replace("members: 4", "members: 2")
        elif example == "pruned_data":  # as many samples as are predicted
            few = "{class_path: leyden.data.Digits, init_args: {num_train: 100}}"
            text = text.replace("source: leyden.data.Digits", f"source: {few}").replace("images_per_class: 10, ", "")
            text = text.replace("members: 3", "members: 2")
        settings = SETTINGS
        text = text.replace("[512, 512]", "[16]").replace("members: 5", "members: 2")
        if example in EXPERIMENTS:  # which have networks of their own
            settings = [setting for setting in settings if not setting.startswith("model.network.")]
        Path(f"{example}.yaml").write_text(text)
        return ["run", f"{example}.yaml", f"--name={name}", "--set", *settings, "--debug"]

    monkeypatch.chdir(tmp_path)
    return command


def ends(run: Path) -> dict[str, object]:
    """What a run has left: metrics by stage, weights, datasets, and all states of checkpoints that are tensors."""
    records = json.loads((run / "stages.json").read_text())["stages"]
    left: dict[str, object] = {name: (record["gives"], record["metrics"]) for name, record in records.items()}
    assert {record["state"] for record in records.values()} == {"finished"}
    for path in sorted(run.rglob("*")):
        if path.name.startswith("."):
            continue  # what a kill leaves of a file that was about to take its place
        name = path.relative_to(run).as_posix()
        if path.suffix == ".safetensors":
            left[name] = _bits(safetensors.torch.load_file(path))  # a header may name the folder of the run
        elif path.suffix == ".ckpt":
            checkpoint = torch.load(path, weights_only=True)
            for part in ("state_dict", "current_model_state", "optimizer_states", "random_states"):
                left[f"{name}: {part}"] = _bits(checkpoint.get(part))  # a combination has weights only
    assert any(name.endswith("last.ckpt: state_dict") for name in left)
    return left


def _bits(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("example", EXAMPLES)
def test_stopped_anywhere(command, example, monkeypatch, capsys):
    stop_anywhere(command, example, monkeypatch, capsys)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("example", EXPERIMENTS)
def test_experiment_stopped_anywhere(command, example, monkeypatch, capsys):
    stop_anywhere(command, example, monkeypatch, capsys)


def stop_anywhere(command, example, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        whole = Killer(stop)
        whole.install(patch)
        assert main(command(example, "whole")) == 0
    draw = random.Random(f"{os.environ.get('LEYDEN_TEST_SEED', '0')} {example}")
    run = Path("logs", example, "stopped")
    arguments = command(example, "stopped")
    for _ in range(5):
        with monkeypatch.context() as patch:
            Killer(stop, at=draw.randint(2, whole.count // 5)).install(patch)
            assert main(arguments) == 1
        assert "KilledError" in capsys.readouterr().err
        if (run / "stages.json").is_file():
            arguments = ["run", f"--resume={run}", "--debug"]
    assert main(["run", f"--resume={run}", "--debug"]) == 0
    assert ends(run) == ends(run.with_name("whole"))


EXAMPLE_KILLS = [
    ("distillation", 2),
    *(pytest.param(example, 5, marks=pytest.mark.slow) for example in EXAMPLES | EXPERIMENTS),
]


@pytest.mark.parametrize(("example", "kills"), EXAMPLE_KILLS)
def test_killed_by_the_system(command, start_processes, tmp_path, monkeypatch, example, kills):
    with monkeypatch.context() as patch:
        whole = Killer(stop)
        whole.install(patch)
        assert main(command(example, "whole")) == 0
    draw = random.Random(f"{os.environ.get('LEYDEN_TEST_SEED', '0')} {example} {kills}")
    run = Path("logs", example, "killed")
    arguments = command(example, "killed")
    for _ in range(kills):
        process = start_processes(run_and_kill, 1, tmp_path, arguments, at=draw.randint(3, whole.count // kills))
        with pytest.raises(RuntimeError, match=f"ended with .-{signal.SIGKILL}"):
            process.results()
        arguments = ["run", f"--resume={run}", "--debug"]
    assert main(arguments) == 0
    assert ends(run) == ends(run.with_name("whole"))
