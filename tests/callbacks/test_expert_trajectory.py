"""The weights of a fit, epoch by epoch."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import ExactResume, ExpertTrajectory, LastCheckpoint, read_trajectory
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Weights(Callback):
    """Looks at them as the fit starts, and as each epoch ends."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(pl_module.network.head.weight.detach().clone())

    def on_train_epoch_end(self, trainer, pl_module):
        self.on_train_start(trainer, pl_module)


def method():
    torch.manual_seed(0)
    return Classification(MLP(64, 10, (4,)), optimizer=partial(torch.optim.SGD, lr=0.1))


def data():
    return Digits(num_train=40, batch_size=10, seed=0)


def test_every_second_epoch(make_trainer, tmp_path):
    weights = Weights()
    trainer = make_trainer(ExpertTrajectory(2), weights, LastCheckpoint(), max_epochs=5)
    trainer.fit(method(), data())
    read = read_trajectory(tmp_path / "checkpoints" / "last.ckpt")
    assert list(read) == ["body.0.weight", "body.0.bias", "head.weight", "head.bias"]
    assert torch.equal(read["head.weight"], torch.stack([weights.seen[epoch] for epoch in (0, 2, 4)]))
    # another fit begins anew
    trainer = make_trainer(trainer.callbacks[0], LastCheckpoint(), max_epochs=2)
    trainer.fit(method(), data())
    assert len(read_trajectory(tmp_path / "checkpoints" / "last.ckpt")["head.bias"]) == 2


def test_goes_on_after_a_cut(make_trainer, tmp_path):
    for folder, epochs in (("whole", [4]), ("cut", [2, 4])):
        for last in epochs:
            callbacks = [ExactResume(), ExpertTrajectory(), LastCheckpoint(3)]
            trainer = make_trainer(*callbacks, max_epochs=last, default_root_dir=tmp_path / folder)
            path = tmp_path / folder / "checkpoints" / "last.ckpt"
            trainer.fit(method(), data(), ckpt_path=path if path.is_file() else None)
    whole, cut = (read_trajectory(tmp_path / folder / "checkpoints" / "last.ckpt") for folder in ("whole", "cut"))
    assert len(whole["head.bias"]) == 5
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


def test_wrong_use(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        ExpertTrajectory(0)
    make_trainer(LastCheckpoint(), max_epochs=1).fit(method(), data())
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="has no trajectory: train with leyden.callbacks.ExpertTrajectory"):
        read_trajectory(path)
    with pytest.raises(MisconfigurationException, match="goes on from a checkpoint without them"):
        make_trainer(ExpertTrajectory(), LastCheckpoint()).fit(method(), data(), ckpt_path=path)
