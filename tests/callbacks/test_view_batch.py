import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import ViewBatchTraining
from leyden.core import Batch, Outputs
from leyden.data import Digits, GaussianNoise, Sequential, ViewAugment, ViewBatch
from leyden.losses import view_batch_loss
from leyden.methods import Classification
from leyden.models import MLP


def method():
    torch.manual_seed(0)
    return Classification(MLP(64, 10, (8,)))


def data(**kwargs):
    return Digits(**{"batch_size": 8, "num_train": 32, "seed": 0} | kwargs)


class Batches(Callback):
    def __init__(self):
        self.seen: list[Batch] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch)


def test_a_fit_sees_all_views_of_a_sample_at_once_and_each_differently(make_trainer):
    batches, digits = Batches(), data(augment=GaussianNoise(0.1))
    make_trainer(ViewBatchTraining(views=4), batches, max_epochs=4).fit(method(), digits)
    assert len(batches.seen) == 16
    for batch in batches.seen:
        groups = batch["index"].view(2, 4)
        assert (groups == groups[:, :1]).all()
        assert len(batch["input"].flatten(1).unique(dim=0)) == 8
    assert torch.cat([batch["index"] for batch in batches.seen]).bincount().tolist() == [4] * 32


def test_the_augmentation_is_wrapped_once(make_trainer):
    mine = ViewAugment(GaussianNoise(0.1), GaussianNoise(0.5))
    digits = data(augment=mine)
    make_trainer(ViewBatchTraining(), max_epochs=1).fit(method(), digits)
    assert digits.augment is mine
    digits = data(augment=GaussianNoise(0.1))
    for _ in range(2):
        make_trainer(ViewBatchTraining(), max_epochs=1).fit(method(), digits)
        assert digits.order is None, "the order is taken away after the fit"
    assert isinstance(digits.augment.first, GaussianNoise)


def test_term_after_the_first_epochs(make_trainer):
    callback, module = ViewBatchTraining(weight=2.0, start_epoch=1), method()
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    batch, terms = {"index": torch.tensor([3, 3, 5, 5])}, {"task": torch.tensor(1.0)}
    seen = {}

    class Peek(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            outputs = Outputs(logits=logits, features=logits)
            seen[trainer.current_epoch] = callback.loss_terms(module, batch, outputs, terms)

    make_trainer(callback, Peek(), max_epochs=3).fit(module, data())
    assert seen[0] == seen[1] == terms
    torch.testing.assert_close(seen[2], terms | {"view_batch": 2.0 * view_batch_loss(logits, batch["index"])})


def test_what_cannot_be(make_trainer):
    with pytest.raises(ValueError, match="views must be at least 2, got 1"):
        ViewBatchTraining(1)
    with pytest.raises(ValueError, match=r"weight must be at least 0, got -1.0"):
        ViewBatchTraining(weight=-1.0)
    with pytest.raises(MisconfigurationException, match="its own order, but the data have Sequential"):
        make_trainer(ViewBatchTraining()).fit(method(), data(order=Sequential()))
    with pytest.raises(MisconfigurationException, match="its own order, but the data have ViewBatch"):
        make_trainer(ViewBatchTraining()).fit(method(), data(order=ViewBatch(2)))
    with pytest.raises(MisconfigurationException, match="views must divide the 4 samples .*, got 3"):
        make_trainer(ViewBatchTraining(3), accumulate_grad_batches=2).fit(method(), data())
