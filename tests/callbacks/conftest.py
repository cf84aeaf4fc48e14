"""Small fits that can be cut at any step and gone on with, as if in a new process."""

import hashlib
import random
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from leyden.callbacks import ExactResume, LastCheckpoint
from leyden.data import DataModule, TensorDictDataset
from leyden.methods import Classification
from leyden.models import MLP
from leyden.plugins import CSVLogger


class Data(DataModule):
    """48 training samples: 6 steps of 8 in an epoch."""

    num_classes = 3

    def datasets(self):
        generator = torch.Generator().manual_seed(0)

        def tensors(num_samples):
            x = torch.randn(num_samples, 6, generator=generator)
            return TensorDictDataset({"input": x, "target": x.argmax(1) % 3})

        return {"train": tensors(48), "val": tensors(11), "test": tensors(9)}


class Noisy(Classification):
    """Draws from all three global generators in every training step: dropout, numpy, random."""

    def loss_terms(self, batch, outputs):
        terms = super().loss_terms(batch, outputs)
        if self.training:
            noise = np.random.rand() + random.random()  # noqa: NPY002
            terms["noise"] = noise * outputs.logits.square().mean()
        return terms


class Cut(Exception):  # noqa: N818
    """Ends a fit as a kill would: what was not saved is lost."""


class Diary(Callback):
    """Notes every step and raises `Cut` before step ``cut``."""

    def __init__(self):
        self.cut = None
        self.steps = {}  # (global_step, batch_idx): what the step saw and made
        self.validations = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.cut:
            raise Cut
        self.generators = digest_of_generators()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        note = {
            "epoch": trainer.current_epoch,
            "index": batch["index"].tolist(),
            "generators": self.generators,
            "loss": outputs["loss"].item(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        assert self.steps.setdefault((trainer.global_step, batch_idx), note) == note  # also when it is made again

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


def digest_of_generators():
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    parts = [torch.get_rng_state().numpy().tobytes(), keys.tobytes(), repr(rest).encode(), repr(random.getstate())]
    return hashlib.sha1(b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.fixture
def make_method():
    """``make_method(**kwargs)``: a method that draws random numbers in every step."""

    def make(cls=Noisy, **kwargs):
        kwargs.setdefault("optimizer", partial(torch.optim.Adam, lr=0.02))
        return cls(MLP(6, 3, (8,), dropout=0.5), **kwargs)

    return make


@pytest.fixture
def make_data():
    """``make_data(batch_size, **kwargs)``: 48 samples to train on, 11 to validate, 9 to test."""
    return lambda batch_size=8, **kwargs: Data(batch_size, seed=3, **kwargs)


@pytest.fixture
def run(tmp_path, make_method, make_data, make_trainer):
    """``run(name, cuts, ...)`` fits in a folder, is cut before each of the steps, and goes on from ``last.ckpt``.

    Every fit has new objects and other seeds. Any argument may be a list: one value for each fit.
    """

    def fit(name, cuts=(), *, every_n_steps=1, callbacks=tuple, batch_size=8, method=make_method, data=None, **kwargs):
        folder = tmp_path / name
        last = folder / "checkpoints" / "last.ckpt"
        diary = Diary()
        for number, cut in enumerate([*cuts, None]):
            arguments = {key: value[number] if isinstance(value, list) else value for key, value in kwargs.items()}
            size = batch_size[number] if isinstance(batch_size, list) else batch_size
            resumed = last if last.exists() else None
            if resumed is None:
                shutil.rmtree(folder, ignore_errors=True)
            seed_all(number if resumed else 0)
            diary.cut = cut
            trainer = make_trainer(
                ExactResume(),
                *callbacks(),
                diary,
                LastCheckpoint(every_n_steps),
                **{"default_root_dir": folder, "logger": CSVLogger(str(folder)), "max_epochs": 4, **arguments},
            )
            module, datamodule = method(), make_data(size, **(data or {}))
            if cut is None:
                trainer.fit(module, datamodule=datamodule, ckpt_path=resumed)
            else:
                with pytest.raises(Cut):
                    trainer.fit(module, datamodule=datamodule, ckpt_path=resumed)
        log = (folder / "metrics.csv").read_text()
        return SimpleNamespace(
            folder=folder, last=last, diary=diary, log=log, trainer=trainer, method=module, data=datamodule
        )

    return fit


@pytest.fixture
def assert_same():
    """``assert_same(a, b)``: nested containers of tensors and plain values are equal, bit for bit."""

    def check(a, b, where="checkpoint"):
        assert type(a) is type(b), where
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                check(a[key], b[key], f"{where}[{key!r}]")
        elif isinstance(a, list | tuple):
            assert len(a) == len(b), where
            for number, (x, y) in enumerate(zip(a, b, strict=True)):
                check(x, y, f"{where}[{number}]")
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, where
            assert torch.equal(a, b), where
        else:
            assert a == b, where

    return check


@pytest.fixture
def assert_same_runs(assert_same):
    """``assert_same_runs(run, other)``: the same steps, logs, weights and last checkpoint."""

    def check(run, other):
        assert run.diary.steps == other.diary.steps
        assert run.diary.validations == other.diary.validations
        assert run.log == other.log
        assert_same(run.method.state_dict(), other.method.state_dict(), "weights")
        checkpoints = [torch.load(which.last, weights_only=True) for which in (run, other)]
        assert_same(*checkpoints)

    return check
