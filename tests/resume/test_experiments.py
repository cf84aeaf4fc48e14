"""Every experiment, stopped three times and resumed, ends in the same bits as when it is left alone."""

from pathlib import Path

import pytest

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

# batches: 3 epochs of 4, and checkpoints after 2, 4, 6, 8, 10, 12. A stop in the first epoch hides most faults.
STOPS = {3: "in the first epoch", 8: "between the second and the third", 11: "in the third"}


class StoppedError(Exception):
    pass


@pytest.mark.sampled(5)
def test_stopped_and_resumed(experiment, quick_fit, assert_same_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(quick_fit(experiment, "whole")) == 0
    arguments = quick_fit(experiment, "stopped")
    run = Path("logs", experiment, "stopped")
    for stop in STOPS:
        with monkeypatch.context() as patch:
            patch.setattr(LastCheckpoint, "on_train_batch_start", stop_before(stop))
            assert main(arguments) == 1
        assert f"StoppedError: before batch {stop}" in capsys.readouterr().err
        arguments = ["fit", f"--resume={run}", "--debug"]
    assert main(arguments) == 0
    assert_same_run(run.with_name("whole"), run)


def stop_before(batch_number):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == batch_number:
            raise StoppedError(f"before batch {batch_number}")

    return on_train_batch_start
