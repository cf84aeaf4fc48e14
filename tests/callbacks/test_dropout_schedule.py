"""Dropout by the step: rates by hand, the layers that have one, and fits that are stopped and resumed."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import DropoutSchedule, EpochGap, ExactResume, LastCheckpoint, dropout_at, set_dropout
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, TransformerBlock


class Rates(MethodCallback):
    def __init__(self):
        self.rates = []

    def loss_terms(self, method, batch, outputs, terms):
        self.rates += {layer.p for layer in method.modules() if isinstance(layer, nn.Dropout)}
        return terms


@pytest.fixture
def fit(make_trainer):
    def fit(*callbacks, ckpt_path=None, network=None, **kwargs):
        torch.manual_seed(0)
        network = network or MLP(64, 10, (8,), dropout=0.3)
        method = Classification(network, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        rates = Rates()
        trainer = make_trainer(ExactResume(), *callbacks, rates, **{"limit_val_batches": 0, "max_epochs": 2} | kwargs)
        trainer.fit(method, Digits(num_train=40, batch_size=8, seed=0), ckpt_path=ckpt_path)
        return rates.rates, method.state_dict()

    return fit


def test_rates_by_hand():
    assert [dropout_at(x) for x in (0.0, 0.49, 0.5, 1.0)] == [0.0, 0.0, 0.1, 0.1]
    ramp = [dropout_at(x / 8, p=0.4, begin=0.25, finish=0.75) for x in range(9)]
    assert ramp == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert dropout_at(0.0, begin=0.0, finish=0.0) == 0.1
    with pytest.raises(ValueError, match="begin and finish must lie in"):
        dropout_at(0.0, begin=0.6, finish=0.5)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\), got 1"):
        dropout_at(0.0, p=1.0)


def test_layers_with_a_rate():
    module = nn.ModuleList(
        [nn.Dropout2d(0.3), nn.MultiheadAttention(4, 2), TransformerBlock(8, 2), nn.Linear(2, 2), nn.LSTM(2, 2)]
    )
    assert set_dropout(module, 0.25) == 5  # the block has a layer, and attention with a number
    assert module[0].p == module[1].dropout == module[2].dropout.p == module[2].attention.dropout == 0.25
    with pytest.raises(ValueError, match="Linear has no dropout layer"):
        set_dropout(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\), got -1"):
        set_dropout(module, -1.0)


def test_rates_of_a_fit(fit):
    rates, _ = fit(DropoutSchedule(p=0.2))
    assert rates == [0.0] * 5 + [0.2] * 5
    rates, _ = fit(DropoutSchedule(p=0.5, begin=0.0, finish=1.0))
    assert rates == pytest.approx([0.05 * step for step in range(10)])


def test_rate_zero_is_no_dropout(fit):
    _, zero = fit(DropoutSchedule(p=0.0))
    torch.manual_seed(0)
    _, never = fit(network=MLP(64, 10, (8,)))
    _, with_dropout = fit()
    assert all(torch.equal(tensor, never[name]) for name, tensor in zero.items())
    assert not all(torch.equal(tensor, with_dropout[name]) for name, tensor in zero.items())


def test_a_resumed_run_has_the_same_rates(fit, tmp_path):
    class StopAtSeven(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 7:
                raise KeyboardInterrupt

    def schedule():
        return DropoutSchedule(p=0.2, begin=0.3, finish=0.8)

    rates, whole = fit(schedule())
    with pytest.raises(SystemExit):
        fit(schedule(), LastCheckpoint(every_n_steps=6), StopAtSeven())
    again, resumed = fit(schedule(), ckpt_path=next(tmp_path.rglob("last.ckpt")))
    assert again == rates[6:]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_gap_to_the_best_validation(make_trainer, tmp_path):
    losses = iter([3.0, 2.0, 2.5, 1.0])

    class Known(Classification):
        def validation_step(self, batch, batch_idx):
            self.metrics["val"]["loss"].update(next(losses))

    method = Known(MLP(64, 10, (8,)), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    method.metrics["val"].pop("accuracy")
    gap, logger = EpochGap(), CSVLogger(tmp_path)
    trainer = make_trainer(gap, logger=logger, max_epochs=4, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(method, Digits(num_train=40, batch_size=8))
    with open(Path(logger.log_dir, "metrics.csv"), newline="") as file:
        logged = [row["val/degradation"] for row in csv.DictReader(file)]
    assert [float(value) for value in logged if value] == [0.0, 0.0, 0.5, 0.0]
    fresh = EpochGap()
    fresh.load_state_dict(gap.state_dict())
    assert fresh.best == 1.0


def test_errors(fit):
    with pytest.raises(ValueError, match="begin and finish"):
        DropoutSchedule(begin=0.7, finish=0.2)
    with pytest.raises(ValueError, match="MLP has no dropout layer"):
        fit(DropoutSchedule(), network=_without())
    with pytest.raises(MisconfigurationException, match="needs a last step"):
        fit(DropoutSchedule(), max_epochs=-1, max_steps=-1, max_time={"seconds": 1})


def _without():
    network = MLP(64, 10, (8,))
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    return network
