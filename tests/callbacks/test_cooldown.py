from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import DPSGD, Cooldown
from leyden.data import DigitMixture, Digits, Sequential
from leyden.methods import Classification
from leyden.models import MLP


class Sources(Callback):
    """Notes how many samples of the smallest source an epoch has."""

    def __init__(self):
        self.rare = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rare.append(0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rare[-1] += int((batch["source"] == 2).sum())


def fit(make_trainer, *callbacks, data=None, **kwargs):
    data = data or DigitMixture(num_train=200, batch_size=20, seed=0)
    method = Classification(MLP(64, 10, (4,)), optimizer=partial(torch.optim.SGD, lr=0.1))
    make_trainer(*callbacks, limit_val_batches=0, **kwargs).fit(method, data)


def test_cools_down_with_the_fit(make_trainer):
    cooldown, sources = Cooldown(1e9, 1.0, begin=0.5, finish=0.5, key="source"), Sources()
    fit(make_trainer, cooldown, sources, max_epochs=4)
    assert cooldown.order.counts.tolist() == [160, 30, 10]
    assert cooldown.order.total_samples == 800
    assert min(sources.rare[:2]) > 45  # a third of 200
    assert max(sources.rare[2:]) < 25  # a twentieth
    stays = Cooldown(1e9, None, key="source")
    fit(make_trainer, stays, sources, max_epochs=-1, max_steps=10)
    assert stays.order.temperature_at(10**9) == 1e9
    assert stays.order.total_samples == 200


def test_what_cannot_be(make_trainer):
    private = DPSGD(target_epsilon=8.0, target_delta=1e-3)
    with pytest.raises(MisconfigurationException, match="has an order already .Sequential."):
        fit(make_trainer, Cooldown(key="source"), data=DigitMixture(num_train=40, batch_size=8, order=Sequential()))
    with pytest.raises(MisconfigurationException, match="Poisson sampling draws them in each step"):
        fit(make_trainer, private, Cooldown(key="source"))
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs or max_steps"):
        fit(make_trainer, Cooldown(key="source"), max_epochs=-1)
    with pytest.raises(Exception, match="Cooldown needs .*domain"):
        fit(make_trainer, Cooldown(), data=Digits(num_train=40, batch_size=8))
    for kwargs, message in (
        ({"temperature": -1.0}, "temperatures must be positive, got -1.0"),
        ({"begin": 0.9, "finish": 0.5}, "0 <= begin <= finish, got 0.9 and 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Cooldown(**kwargs)
