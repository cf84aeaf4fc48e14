import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import LastCheckpoint, LazyCheckpointing
from leyden.cli import main
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP
from leyden.plugins import AtomicCheckpointIO, LazyAsyncCheckpointIO

RUN = Path("logs/weights/datastates")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


class Watch(Callback):
    """Notes at each save how many storages are promised not to change."""

    def __init__(self) -> None:
        self.promised: list[int] = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.promised.append(len(trainer.strategy.checkpoint_io._unchanging))


def fit(*callbacks: Callback, io, method=None, **arguments) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, LastCheckpoint()],
        plugins=[io],
        logger=False,
        max_epochs=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(
        method or Classification(MLP(64, 10, [8])), Digits(num_train=64, batch_size=16, eval_batch_size=64, seed=0)
    )
    return trainer


def test_weights_and_moments_are_copied_later_and_the_rest_at_once():
    watch = Watch()
    fit(LazyCheckpointing(), watch, io=LazyAsyncCheckpointIO())
    assert watch.promised == [4 + 3 * 4, 4 + 3 * 4]  # two layers; exp_avg, exp_avg_sq and step of each parameter


def test_steps_by_hand_are_copied_at_once():
    class ByHand(Classification):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    watch = Watch()
    fit(LazyCheckpointing(), watch, io=LazyAsyncCheckpointIO(), method=ByHand(MLP(64, 10, [8])))
    assert watch.promised == [0, 0]


def test_it_waits_before_others_change_weights():
    lazy = LazyCheckpointing()
    trainer = fit(Watch(), lazy, io=LazyAsyncCheckpointIO())
    assert trainer.callbacks[0] is lazy
    assert lazy.stall_seconds > 0.0


def test_without_the_plugin_it_says_what_is_missing():
    with pytest.raises(MisconfigurationException, match=r"needs leyden\.plugins\.LazyAsyncCheckpointIO in trainer"):
        fit(LazyCheckpointing(), io=AtomicCheckpointIO())


def test_a_failed_write_stops_the_run_in_the_next_step_and_loses_nothing(quick_fit, monkeypatch, capsys):
    save, saved = torch.save, 0

    def save_until_full(checkpoint, file):
        nonlocal saved
        saved += 1
        if saved == 3:
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        every = "--trainer.callbacks.LastCheckpoint.every_n_steps=1"
        assert main(quick_fit("weights/datastates", "full", every)) == 1
    assert "last.ckpt could not be written: No space left on device; the file before it is intact" in error_line(capsys)
    step = torch.load(RUN / "full/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == 2
    assert main(["fit", f"--resume={RUN / 'full'}"]) == 0


def test_an_error_of_training_is_not_hidden_by_one_of_writing(quick_fit, monkeypatch, capsys):
    def fail(checkpoint, file):
        time.sleep(0.2)  # until after the error of training
        raise OSError(28, "No space left on device")

    def die(self, batch, batch_idx):
        raise KeyError("of training")

    def step(self, batch, batch_idx):
        self.__class__.training_step = die
        return original(self, batch, batch_idx)

    original = Classification.training_step
    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(Classification, "training_step", step)
    every = "--trainer.callbacks.LastCheckpoint.every_n_steps=1"
    with pytest.warns(UserWarning, match="No space left on device"):
        assert main(quick_fit("weights/datastates", "two", every)) == 1
    assert "of training" in error_line(capsys)
