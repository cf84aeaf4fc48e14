"""A run that a scheduler ends by a signal loses no step, and ends in the same bits when it is resumed."""

import os
import signal
from pathlib import Path

import pytest
import torch

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

RUN = Path("logs/default/stopped")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scontrol(tmp_path, monkeypatch) -> Path:
    """A stand-in for SLURM's command, that notes how it was called."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "called"


def signal_in(batch_number: int, number: int):
    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.fit_loop.epoch_loop.total_batch_idx == batch_number:
            os.kill(os.getpid(), number)

    return on_before_backward


def last_step() -> int:
    return torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("number", "batch", "saved"),
    [(signal.SIGUSR1, 0, 1), (signal.SIGTERM, 6, 7), (signal.SIGUSR1, 7, 8)],  # the last one ends an epoch
)
def test_the_running_step_is_saved(quick_fit, assert_same_run, monkeypatch, scontrol, tmp_path, number, batch, saved):
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGUSR1)]
    assert main(quick_fit("default", "whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_before_backward", signal_in(batch, number), raising=False)
        assert main(quick_fit("default", "stopped", f"--data.num_workers={batch % 2}")) == 143
    assert last_step() == saved
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    if number == signal.SIGUSR1:
        assert scontrol.read_text() == "requeue 7\n"
    else:
        assert not scontrol.exists()  # who sent it knows what is to become of the job
    assert main(["fit", f"--resume={RUN}"]) == 0
    assert_same_run(RUN.with_name("whole"), RUN, other_saves=True)


def test_steps_of_several_micro_batches_are_not_cut(quick_fit, assert_same_run, monkeypatch):
    accumulate = "--trainer.accumulate_grad_batches=2"
    assert main(quick_fit("default", "whole", accumulate)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_before_backward", signal_in(4, signal.SIGTERM), raising=False)
        assert main(quick_fit("default", "stopped", accumulate)) == 143
    assert last_step() == 3
    assert main(["fit", f"--resume={RUN}"]) == 0
    assert_same_run(RUN.with_name("whole"), RUN, other_saves=True)


def test_a_job_that_is_back_from_the_queue_goes_on(quick_fit, assert_same_run, monkeypatch):
    assert main(quick_fit("default", "whole")) == 0
    command = quick_fit("default", "stopped")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_before_backward", signal_in(6, signal.SIGTERM), raising=False)
        assert main(command) == 143
    assert main(command) == 1  # not from the queue: it would overwrite a run
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(command) == 0
    assert_same_run(RUN.with_name("whole"), RUN, other_saves=True)


def test_a_job_that_had_saved_nothing_starts_again(quick_fit, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(quick_fit("default", "stopped")) == 0


def fit_and_signal_one(folder: Path, arguments: list[str], batch: int) -> int:
    os.chdir(folder)
    if os.environ["RANK"] == "1":
        LastCheckpoint.on_before_backward = signal_in(batch, signal.SIGTERM)
    return main(arguments)


def test_all_processes_stop_in_the_same_step_whichever_gets_the_signal(
    run_processes, quick_fit, assert_same_run, tmp_path
):
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    assert run_processes(fit_and_signal_one, 2, tmp_path, quick_fit("default", "whole", *ddp), -1) == [0, 0]
    assert run_processes(fit_and_signal_one, 2, tmp_path, quick_fit("default", "stopped", *ddp), 5) == [143, 143]
    assert last_step() == 7  # the step of the signal, and the one in which the others hear of it
    assert run_processes(fit_and_signal_one, 2, tmp_path, ["fit", f"--resume={RUN}"], -1) == [0, 0]
    assert_same_run(RUN.with_name("whole"), RUN, other_saves=True)
