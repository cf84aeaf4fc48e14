"""Modules that are replaced between fits, never during one."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import EMA, ExactResume
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


def method(num_outputs=4):
    torch.manual_seed(0)
    return Classification(MLP(in_features=64, num_outputs=num_outputs, hidden=[6]))


def trainer(folder, *callbacks, max_steps=4):
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[ExactResume(), EMA(decay=0.5), *callbacks],
    )


def data():
    return Digits(batch_size=8, num_train=40, seed=0)


class GrownHead(MethodCallback):
    def build(self, method):
        method.replace("network.head", nn.Linear(6, 10))


class UsualHead(MethodCallback):
    """Has the place of a callback that the checkpoint knows."""


UsualHead.__qualname__ = GrownHead.__qualname__


def test_between_two_fits(tmp_path):
    grown = method(10)
    grown.taps.add("network.head")
    trainer(tmp_path).fit(grown, datamodule=data())
    first = grown.network.head
    head = nn.Linear(6, 12, dtype=torch.float64)
    assert grown.replace("network.head", head) is head
    assert grown.network.head is head
    assert head.weight.dtype == torch.float32
    before = head.weight.clone()
    kept = first.weight.clone()
    trainer(tmp_path).fit(grown, datamodule=data())
    assert not torch.equal(head.weight, before)
    assert torch.equal(first.weight, kept)
    with grown.taps.collect() as taps:
        grown(torch.rand(3, 1, 8, 8))
    assert taps["network.head"].shape == (3, 12)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # resumed where it was
def test_in_build_it_resumes_exactly(tmp_path):
    def kept():
        return ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")

    whole, resumed, path = method(), method(), tmp_path / "step=2.ckpt"
    trainer(tmp_path, GrownHead(), kept()).fit(whole, datamodule=data())
    assert whole.network.head.out_features == 10
    trainer(tmp_path / "again", GrownHead(), kept()).fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(MisconfigurationException, match="does not fit the model: 'network.head.weight' has shape"):
        trainer(tmp_path, UsualHead(), kept()).fit(method(12), datamodule=data(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_batch_start", "on_train_epoch_end"])
def test_never_during_a_fit(tmp_path, hook):
    class Late(MethodCallback):
        pass

    def replace(self, trainer, pl_module, *arguments):
        pl_module.replace("network.head", nn.Linear(6, 10))

    setattr(Late, hook, replace)
    grown = method(10)
    head = grown.network.head
    with pytest.raises(MisconfigurationException, match="network.head cannot be replaced during a fit"):
        trainer(tmp_path, Late(), max_steps=5).fit(grown, datamodule=data())
    assert grown.network.head is head
    grown.replace("network.head", nn.Linear(6, 10))  # the fit is over


def test_all_places_of_a_module():
    grown = method()
    grown.network.other = grown.network.head
    head = grown.replace("network.head", nn.Linear(6, 10))
    assert grown.network.other is head


def test_no_such_module():
    with pytest.raises(ValueError, match="there is no module 'network.haed' in Classification; near it: network.head"):
        method().replace("network.haed", nn.Linear(6, 10))
