"""Every experiment, stopped three times and resumed, ends in the same bits as when it is left alone."""

from pathlib import Path

import pytest
import torch

from leyden.callbacks import LastCheckpoint
from leyden.cli import main


class StoppedError(Exception):
    pass


@pytest.mark.sampled(5)
def test_stopped_and_resumed(experiment, quick_fit, assert_same_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(quick_fit(experiment, "whole")) == 0
    arguments = quick_fit(experiment, "stopped")
    (whole,) = Path("logs").rglob("whole")
    run = whole.with_name("stopped")
    for stop in stops(whole):
        with monkeypatch.context() as patch:
            patch.setattr(LastCheckpoint, "on_train_batch_start", stop_before(stop))
            assert main(arguments) == 1
        assert f"StoppedError: before batch {stop}" in capsys.readouterr().err
        arguments = ["fit", f"--resume={run}", "--debug"]
    assert main(arguments) == 0
    assert_same_run(whole, run)


def stops(run):
    """Numbers of batches: in the first epoch, between the second and the third, and in the third.

    Of 3 epochs of 4 batches, with a checkpoint after every other one, these are 3, 8 and 11: a stop in the first epoch
    alone would hide most faults.
    """
    loops = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    in_epoch, in_all = batches["current"]["ready"], batches["total"]["ready"]
    return sorted({in_epoch // 2 + 1, 2 * in_epoch, in_all - 1})


def stop_before(batch_number):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == batch_number:
            raise StoppedError(f"before batch {batch_number}")

    return on_train_batch_start
