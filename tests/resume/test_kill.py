"""A run that is killed three times without a word ends in the same bits as one that is left alone."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

SETTINGS = [  # 5 batches in an epoch; randomness of every kind: network, augmentation, order of the samples
    "--trainer.max_epochs=10",
    "--trainer.limit_train_batches=5",
    "--model.network.dropout=0.2",
    "--model.network.width=4",
    "--data.augment=leyden.data.RandomCrop",
    "--data.augment.padding=1",
]


def fit(folder: Path, arguments: list[str], kill_before: int | None = None) -> int:
    os.chdir(folder)
    if kill_before is not None:

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.fit_loop.epoch_loop.total_batch_idx == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

        LastCheckpoint.on_train_batch_start = on_train_batch_start
    return main(arguments)


@pytest.fixture
def whole(tmp_path, monkeypatch, quick_fit):
    monkeypatch.chdir(tmp_path)
    assert main(quick_fit("default", "whole", *SETTINGS)) == 0
    return Path("logs/default/whole")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_any_moment(whole, start_processes, quick_fit, assert_same_run, tmp_path, num_workers):
    draw = random.Random(f"{os.environ.get('LEYDEN_TEST_SEED', '0')} {num_workers}")
    run = whole.with_name("killed")
    arguments = quick_fit("default", run.name, *SETTINGS, f"--data.num_workers={num_workers}")
    for _ in range(3):
        process = start_processes(fit, 1, tmp_path, arguments)
        wait_for_checkpoints(process, run, draw.randint(1, 4))
        time.sleep(draw.uniform(0.0, 0.05))
        assert process.running(), "the run ended before it was killed"
        process.kill()
        arguments = ["fit", f"--resume={run}", "--debug"]
    assert start_processes(fit, 1, tmp_path, arguments).results() == [0]
    assert_same_run(whole, run)


@pytest.mark.parametrize("batch", [1, 10, 13])  # before the first checkpoint, at an edge, within an epoch
def test_killed_before_a_certain_batch(whole, start_processes, quick_fit, assert_same_run, tmp_path, batch):
    run = whole.with_name("killed")
    process = start_processes(fit, 1, tmp_path, quick_fit("default", run.name, *SETTINGS), kill_before=batch)
    with pytest.raises(RuntimeError, match=f"ended with .-{signal.SIGKILL}"):
        process.results()
    assert start_processes(fit, 1, tmp_path, ["fit", f"--resume={run}"]).results() == [0]
    assert_same_run(whole, run)


def wait_for_checkpoints(process, run: Path, count: int) -> None:
    """Waits until so many new files took the place of the last checkpoint."""
    last = run / "checkpoints" / "last.ckpt"
    seen = {file_number(last)}
    while len(seen) <= count and process.running():
        seen.add(file_number(last))
        time.sleep(0.002)


def file_number(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None
