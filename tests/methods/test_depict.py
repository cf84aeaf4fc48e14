from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import ExactResume, Mixup
from leyden.data import Digits
from leyden.losses import depict_targets
from leyden.methods import DEPICT
from leyden.metrics import ClusteringAccuracy
from leyden.models import MLP, StackedAutoencoder


def fit(method, *callbacks, max_epochs=4, data=None, limit_val_batches=0, ckpt_path=None):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        limit_val_batches=limit_val_batches,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=list(callbacks),
    )
    trainer.fit(method, data or Digits(num_train=120, batch_size=40, seed=0), ckpt_path=ckpt_path)
    return trainer


def make(**kwargs):
    torch.manual_seed(0)
    optimizer = kwargs.pop("optimizer", partial(torch.optim.Adam, lr=1e-3))
    return DEPICT(StackedAutoencoder(64, 10, (16, 8)), optimizer=optimizer, **kwargs)


class Save(Callback):
    """Saves behind each step, as `ModelCheckpoint` does: before the hooks of the method."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class Watch(Callback):
    """Copies targets and predictions at every epoch's end, after the method."""

    def __init__(self):
        self.targets, self.prob = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.targets.append(None if pl_module.targets is None else pl_module.targets.values.clone())
        self.prob.append(None if pl_module.prob is None else pl_module.prob.values.clone())


def test_phases():
    watch = Watch()
    method = make(pretrain=0.5, initialize=0.25)
    fit(method, watch, max_epochs=4)
    assert watch.targets[:2] == [None, None]
    assert set(watch.targets[2].unique().tolist()) == {0.0, 1.0}  # cluster numbers, for one epoch
    assert torch.equal(watch.targets[2].sum(1), torch.ones(120))
    for targets, prob in ((watch.targets[3], watch.prob[3]), (method.targets.values, method.prob.values)):
        torch.testing.assert_close(targets, depict_targets(prob))
    assert not torch.equal(watch.targets[3], method.targets.values)
    assert not torch.equal(watch.prob[3], watch.prob[2])


def test_the_head_starts_as_k_means():
    method = make(pretrain=1.0, optimizer=partial(torch.optim.SGD, lr=0.0))
    data = Digits(num_train=120, batch_size=40, seed=0)
    fit(method, max_epochs=1, data=data)
    x = data.dataset("train").tensors["input"]
    method.eval()
    codes = method.network.features(x)
    number = method.targets.values.argmax(1)
    assert len(number.unique()) == 10
    centroids = torch.stack([codes[number == k].mean(0) for k in range(10)])
    assert torch.equal(torch.cdist(codes, centroids).argmin(1), number)
    assert torch.equal(method.network(x).argmax(1), number)


def test_validation_measures_the_clusters_that_its_epoch_began():
    method = make(pretrain=1.0)
    data = Digits(num_train=120, batch_size=40, seed=0)
    trainer = fit(method, max_epochs=2, data=data, limit_val_batches=1.0)
    metric = ClusteringAccuracy()
    for batch in data.val_dataloader():
        metric.update(method.eval().network(batch["input"]).argmax(1), batch["target"])
    assert trainer.callback_metrics["val/cluster_accuracy"] == metric.compute() > 0.3


@pytest.mark.parametrize("step", [6, 9, 12])  # the last of pretraining, of the cluster numbers, of new targets
def test_goes_on_from_a_checkpoint_of_an_epochs_last_batch(tmp_path, step):
    whole, cut = make(pretrain=0.4, initialize=0.2), make(pretrain=0.4, initialize=0.2)
    fit(whole, ExactResume(), Save(tmp_path), max_epochs=5)
    trainer = fit(cut, ExactResume(), max_epochs=5, ckpt_path=tmp_path / f"{step}.ckpt")
    assert trainer.global_step == 15
    assert all(torch.equal(a, b) for a, b in zip(cut.state_dict().values(), whole.state_dict().values(), strict=True))
    assert torch.equal(cut.prob.values, whole.prob.values)
    assert torch.equal(cut.targets.values, whole.targets.values)


def test_loss_by_hand():
    method = make(pretrain=1.0, reconstruction_weight=0.5, cluster_weight=2.0, hidden_weight=0.3)
    data = Digits(num_train=120, batch_size=40, seed=0)
    fit(method, max_epochs=1, data=data)
    method.network.noise.p = 0.0
    batch = data.dataset("train").__getitems__([3, 5]) | {"index": torch.tensor([3, 5])}
    x = batch["input"].flatten(1)
    first, second = method.network.encoder
    h = first(x)
    code = second(h)
    decoded = method.network.decoder[0](code)
    reconstruction = (method.network.decoder[1](decoded) - x).square().mean() + 0.3 * (decoded - h).square().mean()
    task = -(method.targets.values[[3, 5]] * method.network.head(code).log_softmax(-1)).sum(1).mean()
    method.train()
    terms = method.loss_terms(batch, method.compute(batch))
    torch.testing.assert_close(terms["task"], 2.0 * task)
    torch.testing.assert_close(terms["reconstruction"], 0.5 * reconstruction)
    torch.testing.assert_close(method.prob.values[[3, 5]], method.network.head(code).softmax(-1).detach())
    method.eval()
    terms = method.loss_terms(batch, method.compute(batch))
    assert terms["task"] == 0.0


def test_labels_are_never_read():
    fits = []
    for shift in (0, 1):
        data = Digits(num_train=120, batch_size=40, seed=0)
        data.dataset("train").tensors["target"].add_(shift)
        method = make()
        fit(method, max_epochs=3, data=data)
        fits.append(torch.cat([p.flatten() for p in method.parameters()]))
    assert torch.equal(*fits)


def test_stops_when_targets_stay():
    trainer = fit(make(pretrain=0.1, initialize=0.0, tol=1.0), max_epochs=8)
    assert trainer.current_epoch == 2  # the autoencoder, and one epoch of clusters


def test_stays_stopped_behind_a_checkpoint_of_the_last_batch(tmp_path):
    arguments = {"pretrain": 0.1, "initialize": 0.0, "tol": 1.0}
    whole, cut = make(**arguments), make(**arguments)
    fit(whole, ExactResume(), Save(tmp_path), max_epochs=8)
    trainer = fit(cut, ExactResume(), max_epochs=8, ckpt_path=tmp_path / "6.ckpt")
    assert trainer.global_step == 6
    assert all(torch.equal(a, b) for a, b in zip(cut.parameters(), whole.parameters(), strict=True))
    fit(whole, max_epochs=1)  # another fit is not at rest
    assert whole.trainer.global_step == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster_weight": -1.0}, "cluster_weight must be at least 0, got -1.0"),
        ({"pretrain": 0.0}, r"pretrain must lie in \(0, 1\] and initialize in \[0, 1\), got 0.0 and 0.1"),
        ({"power": 0.0}, "power must be positive, got 0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_setups():
    with pytest.raises(MisconfigurationException, match="needs a leyden.models.StackedAutoencoder as network, got MLP"):
        fit(DEPICT(MLP(64, 10)))
    with pytest.raises(MisconfigurationException, match="needs a leyden.data.DataModule, got BoringDataModule"):
        fit(make(), data=BoringDataModule())
    with pytest.raises(MisconfigurationException, match="8 training samples cannot make 10 clusters"):
        fit(make(), data=Digits(num_train=8, batch_size=8))
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs"):
        fit(make(), max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="a mixture of two does not have"):
        fit(make(pretrain=0.5), Mixup(), max_epochs=2)
