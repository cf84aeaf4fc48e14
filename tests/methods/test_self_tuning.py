from copy import deepcopy
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional

from leyden.data import Digits
from leyden.methods import SelfTuning
from leyden.models import MLP, SelfTuningMLP

SGD = partial(torch.optim.SGD, lr=0.1)


class Watch(Callback):
    """Hyperparameters and weights around each step."""

    def __init__(self):
        self.h, self.weights, self.tuned = [], [], []

    def on_train_start(self, trainer, pl_module):
        run = pl_module._run_network

        def watched(network, x, *args):
            if not network.training:
                self.tuned.append((deepcopy(network), x, *(arg.detach().clone() for arg in args)))
            return run(network, x, *args)

        pl_module._run_network = watched

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note(pl_module.network)

    def on_train_end(self, trainer, pl_module):
        self.note(pl_module.network)

    def note(self, network):
        self.h.append(network.hyperparameters.h.clone())
        self.weights.append(network.head.weight.detach().clone())


@pytest.fixture
def fit(make_trainer):
    def fit(method, *callbacks, data=None, **kwargs):
        options = {"precision": "64-true", "max_epochs": -1, "max_steps": 8, "limit_val_batches": 0} | kwargs
        trainer = make_trainer(*callbacks, **options)
        trainer.fit(method, datamodule=data or Digits(batch_size=16, num_train=32, seed=0))
        return trainer

    return fit


def network(*, width=8, **knobs):
    torch.manual_seed(0)
    return SelfTuningMLP(64, 10, (width,), **knobs)


def changes(values):
    return [not torch.equal(a, b) for a, b in pairwise(values)]


@pytest.mark.parametrize(
    ("train_steps", "valid_steps", "expected"), [(2, 1, [4, 6]), (3, 2, [5, 5]), (1, 0, [])], ids=str
)
def test_when_it_tunes(fit, train_steps, valid_steps, expected):
    watch = Watch()
    method = SelfTuning(
        network(), train_steps=train_steps, valid_steps=valid_steps, warmup_epochs=1, hparam_lr=0.1, optimizer=SGD
    )
    trainer = fit(method, watch)  # epochs of two steps
    assert trainer.global_step == 8  # steps of tuning are none of the trainer's
    assert [step for step, changed in enumerate(changes(watch.h)) if changed] == sorted(set(expected))
    assert len(watch.tuned) == len(expected)
    assert all(changes(watch.weights))
    assert not any(p.requires_grad for p in method.network.hyperparameters.parameters())
    assert method.network.training


@pytest.mark.parametrize("scale_lr", [1.0, None])
def test_gradient_of_the_validation_loss(fit, scale_lr):
    """Against finite differences; a step of SGD in the place of Adam shows the gradient."""
    watch, weight = Watch(), 0.1
    method = SelfTuning(network(), train_steps=1, warmup_epochs=0, scale_lr=scale_lr, entropy_weight=weight)
    before = method.network.hyperparameters.h.double(), method.network.hyperparameters.raw_scale.double()

    class Plain(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module._tuner = torch.optim.SGD([p for g in pl_module._tuner.param_groups for p in g["params"]], lr=1.0)

    data = Digits(batch_size=16, num_train=32, seed=0)
    fit(method, watch, Plain(), data=data, max_steps=2)
    [(net, x, h)] = watch.tuned
    val = data.dataset("val").tensors
    rows = [(val["input"].double() == image).flatten(1).all(1).nonzero().item() for image in x]
    noise = (h - before[0]) / functional.softplus(before[1])
    assert (scale_lr is None) == (not noise.any())

    def loss(centre, raw_scale):
        scale = functional.softplus(raw_scale)
        logits = net.head(net.features(x, centre + scale * noise))
        entropy = torch.distributions.Normal(0.0, scale).entropy().sum()
        return functional.cross_entropy(logits, val["target"][rows]) - weight * entropy

    knobs, step = method.network.hyperparameters, 1e-5
    for number, after in enumerate((knobs.h, knobs.raw_scale)):
        for entry in range(2):
            shift = [torch.zeros(2).double() for _ in range(2)]
            shift[number][entry] = step
            up, down = (loss(*(b + sign * s for b, s in zip(before, shift, strict=True))) for sign in (1, -1))
            expected = (up - down).item() / (2 * step) if number == 0 or scale_lr else 0.0
            assert (before[number] - after)[entry].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_micro_batches_make_the_same_run(fit):
    ends = []
    for accumulate in (1, 4):
        method = SelfTuning(network(), warmup_epochs=0, hparam_lr=0.1, optimizer=SGD)
        fit(method, accumulate_grad_batches=accumulate, max_steps=6)
        ends.append(method.network.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value)


def test_it_finds_less_noise_where_there_is_too_much(fit):
    noisy = network(width=32, input_noise=1.0, dropout=None)
    method = SelfTuning(noisy, warmup_epochs=1, hparam_lr=0.05, optimizer=SGD)
    data = Digits(batch_size=64, num_train=640, seed=0)
    fit(method, data=data, precision="32-true", max_steps=150)
    knobs = method.network.hyperparameters
    assert knobs.values(knobs.h.unsqueeze(0))["input_noise"].item() < 0.5


def test_bad_arguments_are_refused(fit):
    for name, value in {"train_steps": 0, "valid_steps": -1, "warmup_epochs": -1, "scale_lr": -0.1}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
            SelfTuning(network(), **{name: value})
    with pytest.raises(MisconfigurationException, match="needs a network with hyperparameters.*got MLP"):
        fit(SelfTuning(MLP(64, 10, (8,))))
    loader = torch.utils.data.DataLoader([{"input": torch.rand(64), "target": 0}])
    with pytest.raises(MisconfigurationException, match=r"validation data of a leyden.data.DataModule, got NoneType"):
        Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False).fit(
            SelfTuning(network()), loader, loader
        )


def test_soft_targets_and_a_loss_of_ones_own():
    method = SelfTuning(network(), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    x, target = torch.rand(4, 1, 8, 8), torch.arange(4)
    batch = {"input": x, "index": torch.arange(4)}
    hard, soft = (
        method.loss_terms(batch | {"target": t}, method.compute(batch))["task"]
        for t in (target, functional.one_hot(target, 10).float())
    )
    torch.testing.assert_close(hard, soft)


def test_a_checkpoint_can_be_read_without_a_trainer(fit, tmp_path):
    method = SelfTuning(network(), warmup_epochs=0, hparam_lr=0.1, optimizer=SGD)
    fit(method).save_checkpoint(tmp_path / "fit.ckpt")
    read = SelfTuning.load_from_checkpoint(tmp_path / "fit.ckpt", weights_only=True, network=network().double())
    assert torch.equal(read.network.hyperparameters.h, method.network.hyperparameters.h)
    assert not torch.equal(read.network.hyperparameters.h, network().double().hyperparameters.h)
