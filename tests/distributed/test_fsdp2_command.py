"""The command with sharded parameters: killed and resumed, on one process, exported."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leyden.callbacks import LastCheckpoint
from leyden.cli import main
from leyden.plugins import read_checkpoint

KILLED = 9


def command(folder: Path, arguments: list[str], step: int | None = None) -> None:
    """Runs the command; a kill comes before a step."""
    os.chdir(folder)

    def die(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == step:
            trainer.strategy.barrier()
            os._exit(KILLED)

    LastCheckpoint.on_train_batch_start = die
    assert main(arguments) == 0


@pytest.fixture
def arguments(quick_fit):
    def make(name, *more):
        options = ["--trainer.devices=2", "--trainer.strategy=leyden.plugins.FSDP2Strategy", *more]
        return quick_fit("default", name, *options)

    return make


def assert_same_run(one: Path, other: Path) -> None:
    last = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    for part in ("state_dict", "current_model_state"):
        assert last[0][part].keys() == last[1][part].keys()
        assert all(torch.equal(tensor, last[1][part][name]) for name, tensor in last[0][part].items())
    moments = [state["optimizer_states"][0]["state"] for state in last]
    assert all(torch.equal(s["exp_avg"], moments[1][number]["exp_avg"]) for number, s in moments[0].items())
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


def test_killed_and_resumed_to_the_same_bits(run_processes, arguments, tmp_path):
    run_processes(command, 2, tmp_path, arguments("whole"))
    resume = ["fit", "--resume=logs/default/killed", "--debug"]
    for step, how in ((7, arguments("killed")), (10, resume)):  # saved at 6, in the second epoch of 4 steps, and at 10
        with pytest.raises(RuntimeError, match=rf"ended with \[{KILLED}, {KILLED}\]"):
            run_processes(command, 2, tmp_path, how, step=step)
    run_processes(command, 2, tmp_path, resume)
    assert_same_run(tmp_path / "logs/default/whole", tmp_path / "logs/default/killed")


@pytest.mark.filterwarnings("ignore:The run was saved by 2 processes and goes on with 1")
def test_one_process_exports_what_two_trained(run_processes, arguments, tmp_path, monkeypatch, capsys):
    run_processes(command, 2, tmp_path, arguments("run", "--trainer.max_epochs=1"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "logs/default/run", "--to=safetensors"]) == 0
    weights = load_file(tmp_path / "logs/default/run/export/best.safetensors")
    state = read_checkpoint(tmp_path / "logs/default/run/checkpoints/best.ckpt")["state_dict"]
    expected = {name.removeprefix("network."): tensor for name, tensor in state.items() if "network." in name}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    alone = ["--trainer.strategy=auto", "--trainer.devices=1"]
    assert main(["test", "--ckpt_path=logs/default/run/checkpoints/best.ckpt", *alone, "--debug"]) == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert main(["fit", "--resume=logs/default/run", *alone, "--trainer.max_epochs=2", "--debug"]) == 0
    assert not list(Path("logs/default/run/checkpoints").glob("last*.shards"))
