import csv
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import ExactResume, LanczosLearningRate, polyak_parameters
from leyden.core import Method, Network, Outputs
from leyden.data import Digits, GlobalBatchSampler
from leyden.methods import Classification
from leyden.models import MLP, ConvNet, batch_channel_normalized
from leyden.optim import WarmupCosine
from leyden.plugins import CSVLogger


class Point(Network):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.linspace(1.0, 2.0, 100))
        self.head = nn.Identity()
        self.feature_dim = 100

    def features(self, x):
        return self.position.expand(len(x), -1)


class Quadratic(Method):
    """Its Hessian is diagonal: ``factor`` times 10, -0.5, and often ``bulk``."""

    factor, bulk = 1.0, 1.0

    def loss_terms(self, batch, outputs: Outputs):
        curvatures = self.factor * torch.tensor([10.0, -0.5, *[self.bulk] * 98])
        return {"task": 0.5 * (curvatures * outputs.logits.square()).mean(0).sum()}


class Rates(Callback):
    """Notes rate and momentum of every step, after it."""

    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.rates):
            self.rates.append([(group["lr"], group.get("momentum")) for group in trainer.optimizers[0].param_groups])


def data(**kwargs):
    return Digits(**{"num_train": 32, "batch_size": 16, "seed": 5} | kwargs)


def fit(make_trainer, callback, method, **kwargs):
    rates = Rates()
    trainer = make_trainer(callback, rates, **{"max_epochs": 2, "limit_val_batches": 0} | kwargs)
    trainer.fit(method, datamodule=data())
    return rates.rates, trainer


SGD = partial(torch.optim.SGD, lr=1e-3)
BY_HAND = 4.0 / (10**0.5 + 1.0) ** 2, ((10**0.5 - 1.0) / (10**0.5 + 1.0)) ** 2


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, BY_HAND),
        ({"scale": 0.5}, (0.5 * BY_HAND[0], BY_HAND[1])),
        ({"momentum": False}, (2.0 / 11.0, 0.0)),
    ],
)
def test_rates_of_a_quadratic(make_trainer, arguments, expected, accumulate):
    method = Quadratic(Point(), optimizer=SGD)
    rates, _ = fit(make_trainer, LanczosLearningRate(**arguments), method, accumulate_grad_batches=accumulate)
    assert [rate for (rate,) in rates] == [pytest.approx(expected, rel=1e-5)] * 4


def test_new_rates_every_interval_of_epochs_and_groups_keep_their_ratios(make_trainer):
    class Growing(Quadratic):
        def on_train_epoch_start(self):
            self.factor = 1.0 + self.current_epoch

    method = Growing(Point(), optimizer=SGD, param_groups={"network.position": {"lr_scale": 0.1}})
    rates, _ = fit(make_trainer, LanczosLearningRate(interval=2), method, max_epochs=4)
    expected = [0.1 * BY_HAND[0]] * 4 + [0.1 * BY_HAND[0] / 3.0] * 4
    assert [group[0][0] for group in rates] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("factor", "expected"), [(0.0, (1e-3, 0.0)), (-1.0, (4.0 / (2.0 * 0.5**0.5) ** 2, 0.0))])
def test_no_curvature_and_a_single_positive_one(make_trainer, factor, expected):
    method = Quadratic(Point(), optimizer=SGD)
    method.factor = factor
    rates, _ = fit(make_trainer, LanczosLearningRate(), method, max_steps=1)
    assert rates[0][0] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_momentum_is_limited_with_its_rate(make_trainer):
    method = Quadratic(Point(), optimizer=SGD)
    method.bulk = 1e-5
    rates, _ = fit(make_trainer, LanczosLearningRate(), method, max_steps=1)
    lr, momentum = rates[0][0]
    assert momentum == 0.99
    assert lr == pytest.approx((1.0 + 0.99**0.5) ** 2 / 10.0, rel=1e-5)
    assert lr < 2.0 * (1.0 + momentum) / 10.0  # the heavy ball is stable


def hessian(network, samples):
    names = [name for name, _ in network.named_parameters()]

    def loss(*parameters):
        named = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(network, named, (samples["input"].double(),))
        return nn.functional.cross_entropy(logits, samples["target"])

    parameters = tuple(p.detach() for p in network.parameters())
    blocks = torch.autograd.functional.hessian(loss, parameters)
    return torch.cat(
        [
            torch.cat([block.reshape(p.numel(), -1) for block in row], 1)
            for row, p in zip(blocks, parameters, strict=True)
        ]
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_largest_eigenvalue_is_that_of_the_batch(make_trainer, tmp_path, accumulate):
    logger = CSVLogger(str(tmp_path))
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (2,), activation=nn.Tanh, dropout=0.5), optimizer=SGD)
    whole = MLP(64, 10, (2,), activation=nn.Tanh).double()
    whole.load_state_dict(method.network.state_dict())
    _, trainer = fit(
        make_trainer,
        LanczosLearningRate(),
        method,
        max_steps=1,
        logger=logger,
        accumulate_grad_batches=accumulate,
    )
    indices = next(iter(GlobalBatchSampler(32, 16, seed=5)))[1]
    expected = torch.linalg.eigvalsh(hessian(whole, trainer.datamodule.dataset("train").__getitems__(indices)))
    with open(tmp_path / "metrics.csv", newline="") as file:
        (found,) = [row for row in csv.DictReader(file) if row["train/largest_eigenvalue"]]
    assert float(found["train/largest_eigenvalue"]) == pytest.approx(expected[-1].item(), rel=1e-4)
    assert 0.0 < float(found["train/bulk_eigenvalue"]) < float(found["train/largest_eigenvalue"])


@pytest.mark.parametrize("estimated", [False, True])
def test_statistics_and_modes_stay_as_they_are(make_trainer, estimated):
    methods = []
    for callback in (Rates(), LanczosLearningRate(steps=3)):
        torch.manual_seed(0)
        network = ConvNet(1, 10, width=4)
        network = batch_channel_normalized(network, num_groups=2) if estimated else network
        methods.append(Classification(network, optimizer=SGD))
        fit(make_trainer, callback, methods[-1], max_steps=1)
    without, measured = methods
    for (name, one), other in zip(without.named_buffers(), measured.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert [module.training for module in without.modules()] == [module.training for module in measured.modules()]


def test_frozen_norms_stay_frozen(make_trainer):
    class Freeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for norm in norms:
                norm.eval()

    network, modes = ConvNet(1, 10, width=4), []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda norm, *_: modes.append(norm.training))
    method = Classification(network, optimizer=SGD)
    make_trainer(Freeze(), LanczosLearningRate(steps=2), max_epochs=2, limit_val_batches=0).fit(method, data())
    assert len(modes) > 4 * len(norms)  # the steps, and the products
    assert not any(modes)


@pytest.mark.parametrize("cuts", [[2], [5, 6], [7, 12, 13]])
def test_goes_on_with_its_rates(run, make_method, assert_same_runs, cuts):
    arguments = {
        "callbacks": lambda: [LanczosLearningRate(steps=4, scale=0.1, interval=2)],
        "method": partial(make_method, optimizer=SGD),
    }
    whole = run("whole", **arguments)
    assert len({note["lr"] for note in whole.diary.steps.values()}) > 1
    assert_same_runs(run("cut", cuts, **arguments), whole)


def play(folder, devices):
    torch.manual_seed(0)
    rates = Rates()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[ExactResume(), LanczosLearningRate(steps=6, scale=0.2), rates],
        default_root_dir=folder,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(Classification(MLP(64, 10, (6,)), optimizer=SGD), datamodule=data())
    return torch.tensor([rate for (rate,) in rates.rates], dtype=torch.float64)


def test_two_processes_set_the_same_rates(run_processes, tmp_path):
    one = play(tmp_path, 1)
    assert len(one.unique()) > 2
    for other in run_processes(play, 2, tmp_path, 2):
        torch.testing.assert_close(other, one)


def test_polyak_by_hand():
    assert polyak_parameters(2.0, 2.0) == pytest.approx((0.5, 0.0))
    assert polyak_parameters(4.0, 1.0) == pytest.approx((4.0 / 9.0, 1.0 / 9.0))
    assert polyak_parameters(4.0, 0.0) == pytest.approx((1.0, 1.0))
    lr, momentum = polyak_parameters(4.0, 1.0)
    for curvature in (1.0, 2.5, 4.0):  # the spectral radius of the heavy ball is sqrt(momentum) in all directions
        step = torch.tensor([[1.0 + momentum - lr * curvature, -momentum], [1.0, 0.0]])
        assert torch.linalg.eigvals(step).abs().max().item() == pytest.approx(momentum**0.5, rel=1e-3)


@pytest.mark.parametrize("values", [(1.0, 2.0), (1.0, -0.1), (0.0, 0.0), (float("nan"), 0.0)])
def test_bad_eigenvalues(values):
    with pytest.raises(ValueError, match="largest and smallest must be 0 <= smallest <= largest"):
        polyak_parameters(*values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LanczosLearningRate(**arguments)


class ByHand(Quadratic):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(Quadratic, optimizer=SGD, scheduler=WarmupCosine), "leave scheduler out"),
        (partial(Quadratic, optimizer=torch.optim.Adam), "Adam has none: set its momentum to false"),
        (partial(ByHand, optimizer=SGD), "ByHand makes its optimizer steps itself"),
    ],
)
def test_bad_set_ups(make_trainer, method, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(make_trainer, LanczosLearningRate(), method(Point()))
