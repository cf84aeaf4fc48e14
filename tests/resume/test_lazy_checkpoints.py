"""Checkpoints that are written in the background: the same run, and the same after a kill in the middle of one."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from leyden.cli import main

RUN = Path("logs/weights/datastates")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_checkpoints_and_training_are_those_of_a_synchronous_run(quick_fit, assert_same_run):
    for name, experiment in (("sync", "weights/frequent_checkpoints"), ("lazy", "weights/datastates")):
        assert main(quick_fit(experiment, name, "--trainer.callbacks.LastCheckpoint.every_n_steps=1")) == 0
    sync, lazy = Path("logs/weights/frequent_checkpoints/sync"), RUN / "lazy"
    assert_same_run(sync, lazy)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (sync, lazy))
        assert one["global_step"] == other["global_step"]
        assert one["optimizer_states"][0]["state"].keys() == other["optimizer_states"][0]["state"].keys()
        for number, moments in one["optimizer_states"][0]["state"].items():
            assert torch.equal(moments["exp_avg"], other["optimizer_states"][0]["state"][number]["exp_avg"])
    assert not [path for path in (lazy / "checkpoints").iterdir() if path.name.startswith(".")]


def fit_and_write_slowly(folder: Path, arguments: list[str]) -> int:
    os.chdir(folder)
    save, saved = torch.save, 0

    def slow_save(checkpoint, file):
        nonlocal saved
        saved += 1
        if saved == 4:  # training goes on, and the kill comes in the middle of the file
            file.write(b"x" * 1000)
            file.flush()
            (folder / "saving").touch()
            time.sleep(600)
        save(checkpoint, file)

    torch.save = slow_save
    return main(arguments)


def test_killed_while_writing_in_the_background(start_processes, quick_fit, assert_same_run, tmp_path):
    every = "--trainer.callbacks.LastCheckpoint.every_n_steps=1"
    assert main(quick_fit("weights/datastates", "whole", every)) == 0
    process = start_processes(fit_and_write_slowly, 1, tmp_path, quick_fit("weights/datastates", "killed", every))
    while process.running() and not (tmp_path / "saving").is_file():
        time.sleep(0.001)
    process.kill()
    with pytest.raises(RuntimeError, match=f"ended with .-{signal.SIGKILL}"):
        process.results()
    before = torch.load(RUN / "killed/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert before == 3
    assert main(["fit", f"--resume={RUN / 'killed'}"]) == 0
    assert_same_run(RUN / "whole", RUN / "killed")
