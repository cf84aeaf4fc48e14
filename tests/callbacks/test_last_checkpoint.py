import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from leyden.callbacks import EMA, ExactResume, LastCheckpoint
from leyden.plugins import AtomicCheckpointIO


class Saved(Callback):
    """Notes the step in `last.ckpt` and `previous.ckpt` before every training batch and after every epoch."""

    def __init__(self, folder):
        self.folder = folder
        self.steps, self.first = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(self.look())
        if batch_idx == 0:
            self.first.append(self.steps[-1])

    def on_train_end(self, trainer, pl_module):
        self.steps.append(self.look())

    def look(self):
        return step_of(self.folder / "last.ckpt"), step_of(self.folder / "previous.ckpt")


class Counts(Checkpoint):
    """Lightning calls it after all callbacks that are no checkpoints."""

    epochs = 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else None


@pytest.fixture
def saved(make_method, make_data, make_trainer, tmp_path):
    """``saved(every_n_steps, ...)``: (last, previous) after 0, 1, ... batches of 2 epochs of 6 batches."""

    def fit(every_n_steps=0, **kwargs):
        notes = Saved(tmp_path / "checkpoints")
        trainer = make_trainer(ExactResume(), notes, LastCheckpoint(every_n_steps), **{"max_epochs": 2, **kwargs})
        trainer.fit(make_method(), datamodule=make_data())
        return notes.steps

    return fit


def history(steps, num_batches=12, accumulate=1):
    """What `saved` returns, from the steps at which it should have been saved."""
    rows = []
    for step in range(num_batches + 1):
        done = [s for s in steps if s <= step // accumulate]
        rows.append((done[-1] if done else None, done[-2] if len(done) > 1 else None))
    return rows


@pytest.mark.parametrize(
    ("every_n_steps", "arguments", "steps"),
    [
        (0, {}, [6, 12]),
        (1, {}, list(range(1, 13))),
        (4, {}, [4, 6, 8, 12]),
        (5, {}, [5, 6, 10, 12]),
        # not at 3 and 9, just before a validation; nor twice at an epoch's end
        (3, {"val_check_interval": 0.5}, [6, 12]),
        (1, {"val_check_interval": 0.5}, [1, 2, 4, 5, 6, 7, 8, 10, 11, 12]),
        (4, {"limit_val_batches": 0}, [4, 6, 8, 12]),
        (2, {"check_val_every_n_epoch": 2}, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_when_it_saves(saved, every_n_steps, arguments, steps):
    assert saved(every_n_steps, **arguments) == history(steps)


def test_counts_optimizer_steps(saved):
    assert saved(4, accumulate_grad_batches=2) == history([4, 6, 8, 12], num_batches=24, accumulate=2)


@pytest.mark.parametrize("plugins", [[], [AtomicCheckpointIO()]], ids=["Lightning's", "AtomicCheckpointIO"])
def test_last_is_whole_at_every_moment(make_method, make_data, make_trainer, tmp_path, monkeypatch, plugins):
    """Looked at before and after every call that changes a folder or opens a file for writing."""
    folder = tmp_path / "checkpoints"
    moments = []

    def watched(function):
        def call(*args, **kwargs):
            moments.append(step_of(folder / "last.ckpt"))
            result = function(*args, **kwargs)
            moments.append(step_of(folder / "last.ckpt"))
            return result

        return call

    for name in ("link", "replace", "rename", "unlink", "remove", "fsync"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    trainer = make_trainer(ExactResume(), LastCheckpoint(2), max_epochs=1, plugins=plugins)
    trainer.fit(make_method(), datamodule=make_data())
    assert len(moments) > 8
    first = moments.index(2)
    assert moments[:first] == [None] * first
    assert moments[first:] == sorted(moments[first:])
    assert set(moments[first:]) == {2, 4, 6}
    assert sorted(os.listdir(folder)) == ["last.ckpt", "previous.ckpt"]


def test_previous_stays_when_saving_fails(make_method, make_data, make_trainer, tmp_path):
    class Full(AtomicCheckpointIO):
        count = 0

        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self.count += 1
            if self.count == 3:
                raise OSError("no space left")
            super().save_checkpoint(checkpoint, path, storage_options)

    trainer = make_trainer(LastCheckpoint(2), max_epochs=1, plugins=[Full()])
    with pytest.raises(OSError, match="no space left"):
        trainer.fit(make_method(), datamodule=make_data())
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_resumes_and_keeps_the_one_before(make_method, make_data, make_trainer, tmp_path):
    folder = tmp_path / "elsewhere"
    for epochs in (1, 2):
        callback = LastCheckpoint(dirpath=str(folder))
        last = folder / "last.ckpt"
        trainer = make_trainer(callback, max_epochs=epochs)
        trainer.fit(make_method(), datamodule=make_data(), ckpt_path=last if last.exists() else None)
        assert callback.last_model_path == str(last)
    assert step_of(folder / "last.ckpt") == 12
    assert step_of(folder / "previous.ckpt") == 6
    assert not (tmp_path / "checkpoints").exists()


def test_a_fast_dev_run_saves_nothing(make_method, make_data, make_trainer, tmp_path):
    make_trainer(LastCheckpoint(1), fast_dev_run=True).fit(make_method(), datamodule=make_data())
    assert os.listdir(tmp_path) == []


def test_holds_what_others_did_in_the_same_hook(make_method, make_data, make_trainer, tmp_path):
    trainer = make_trainer(LastCheckpoint(), Counts(), EMA(0.9), max_epochs=2)
    trainer.fit(make_method(), datamodule=make_data())
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Counts"] == {"epochs": 2}
    assert "current_model_state" in checkpoint
    assert isinstance(trainer.callbacks[-1], LastCheckpoint)


def test_beside_the_best_checkpoint(make_method, make_data, make_trainer, tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val/loss", filename="best")
    trainer = make_trainer(LastCheckpoint(), best, max_epochs=2)
    data = make_data()
    trainer.fit(make_method(), datamodule=data)
    with pytest.warns(UserWarning, match="the best checkpoint path from first checkpoint callback"):
        trainer.test(datamodule=data, ckpt_path="best", verbose=False)
    assert os.listdir(tmp_path / "best") == ["best.ckpt"]


def test_the_logs_of_the_epoch_are_in_the_checkpoint(run):
    done = run("run", max_epochs=1)
    checkpoint = torch.load(done.last, weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1
    assert checkpoint["method"]["meter"] == {"sums": []}  # the epoch's means are logged
    assert "train/loss_epoch" in done.log


def test_negative_interval():
    with pytest.raises(ValueError, match="every_n_steps must be at least 0, got -1"):
        LastCheckpoint(-1)
