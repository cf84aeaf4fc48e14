"""A run of two processes, stopped and resumed, ends in the same bits as one that is left alone."""

import os
from pathlib import Path

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

TWO = [
    "--trainer.devices=2",
    "--trainer.strategy=ddp",
    "--model.network.dropout=0.2",
    "--model.network.width=4",
    "--data.augment=leyden.data.RandomCrop",
    "--data.augment.padding=1",
]


def fit(folder: Path, arguments: list[str], stop_before: int | None = None) -> int:
    os.chdir(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == stop_before:
            raise KeyError

    LastCheckpoint.on_train_batch_start = on_train_batch_start
    return main(arguments)


def test_stopped_and_resumed_on_two_processes(run_processes, quick_fit, assert_same_run, tmp_path):
    assert run_processes(fit, 2, tmp_path, quick_fit("default", "whole", *TWO)) == [0, 0]
    arguments = quick_fit("default", "stopped", *TWO)
    run = tmp_path / "logs/default/stopped"
    for stop in (3, 11):
        assert run_processes(fit, 2, tmp_path, arguments, stop_before=stop) == [1, 1]
        arguments = ["fit", f"--resume={run}"]
    assert run_processes(fit, 2, tmp_path, arguments) == [0, 0]
    assert_same_run(run.with_name("whole"), run)
