import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional

from leyden.callbacks import ConvexWeights, ProximalMatchingSchedule
from leyden.data import PhotoPatches
from leyden.methods import Regression
from leyden.nn import LearnedProximalNetwork


class Patches(PhotoPatches):
    """Few of them."""

    def datasets(self):
        return {
            name: torch.utils.data.Subset(dataset, range(48)) if name == "train" else dataset
            for name, dataset in super().datasets().items()
        }


def denoiser(**kwargs) -> Regression:
    torch.manual_seed(0)
    return Regression(LearnedProximalNetwork(64, (8, 8)), **kwargs)


def data() -> PhotoPatches:
    return Patches(batch_size=8, eval_batch_size=512, seed=0)


class Smallest(Callback):
    """Notes the smallest convex weight at every batch's start."""

    def __init__(self) -> None:
        self.weights: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(min(layer.weight.min().item() for layer in pl_module.network.convex))


def test_weights_stay_convex_where_they_would_not(make_trainer):
    smallest = {}
    for name, callbacks in (("without", []), ("with", [ConvexWeights()])):
        notes = Smallest()
        method = denoiser(optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
        make_trainer(notes, *callbacks, max_epochs=2, limit_val_batches=0).fit(method, datamodule=data())
        smallest[name] = min(notes.weights)
    assert smallest["without"] < 0.0
    assert smallest["with"] == 0.0  # something was clamped


def test_negative_weights_are_clamped_before_the_first_step(make_trainer):
    method, notes = denoiser(), Smallest()
    nn.init.constant_(method.network.convex[0].weight, -1.0)
    make_trainer(ConvexWeights(), notes, max_steps=1, limit_val_batches=0).fit(method, datamodule=data())
    assert notes.weights == [0.0]


def test_hooks_are_taken_away(make_trainer):
    method = denoiser()
    trainer = make_trainer(ConvexWeights(), max_steps=1, limit_val_batches=0)
    trainer.fit(method, datamodule=data())
    [optimizer] = trainer.optimizers
    assert not optimizer._optimizer_step_post_hooks


class Terms(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def test_losses_by_hand(make_trainer):
    """12 steps: 6 with the absolute error, then 3 with the width 0.8 and 3 with 0.4."""
    notes, expected = Terms(), []

    class Reference(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with torch.no_grad():
                made = pl_module.network(batch["input"]).double()
            target, step = batch["target"].double(), trainer.global_step
            squared = (made - target).square().sum(1)
            gamma = 0.8 if step < 9 else 0.4
            matched = (1.0 - torch.exp(-squared / gamma**2)).mean()
            expected.append((functional.l1_loss(made, target) if step < 6 else matched).item())

    schedule = ProximalMatchingSchedule(gamma_min=0.4, stages=2, pretrain=0.5)
    make_trainer(schedule, notes, Reference(), max_epochs=2, limit_val_batches=0).fit(denoiser(), datamodule=data())
    assert len(expected) == 12
    assert notes.losses == pytest.approx(expected, rel=1e-4)


def test_the_default_width_is_the_authors(make_trainer):
    """Their 0.64 for patches of 8 x 8 is 0.08 times 8."""
    method, notes = denoiser(), Terms()
    schedule = ProximalMatchingSchedule(stages=1, pretrain=0.01)
    make_trainer(schedule, notes, max_steps=1, limit_val_batches=0).fit(method, datamodule=data())
    batch = next(iter(data_batches()))
    with torch.no_grad():
        squared = (denoiser().network(batch["input"]) - batch["target"]).square().sum(1)
    assert notes.losses[0] == pytest.approx((1.0 - torch.exp(-squared / 0.64**2)).mean().item(), rel=1e-5)


def data_batches():
    module = data()
    module.setup("fit")
    return module.train_dataloader()


def test_bad_input(make_trainer, make_method, make_data):
    for arguments, message in (
        ({"gamma_min": 0.0}, "gamma_min must be positive, got 0.0"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
        ({"pretrain": 1.0}, r"pretrain must lie in \(0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            ProximalMatchingSchedule(**arguments)
    with pytest.raises(MisconfigurationException, match="ConvexWeights calls clamp_weights_ of modules, but none has"):
        make_trainer(ConvexWeights()).fit(make_method(), datamodule=make_data())
    with pytest.raises(MisconfigurationException, match="has 4 stages, but only 1 of 2 steps"):
        make_trainer(ProximalMatchingSchedule(), max_steps=2).fit(denoiser(), datamodule=data())
    with pytest.raises(MisconfigurationException, match="needs the number of steps"):
        make_trainer(ProximalMatchingSchedule(), max_epochs=-1).fit(denoiser(), datamodule=data())
    with pytest.raises(ValueError, match="needs targets of the shape of the outputs"):
        make_trainer(ProximalMatchingSchedule(), max_epochs=3).fit(make_method(), datamodule=make_data())
