import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils import parametrize

from leyden.callbacks import EMA, DynamicSparsity, NMSparsity
from leyden.core import Network
from leyden.methods import Classification
from leyden.models import MLP
from leyden.nn import SparseDopedLinear

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def method(network=None, optimizer=SGD):
    torch.manual_seed(0)
    return Classification(network or MLP(6, 3, (8, 8)), optimizer=optimizer)


class Notes(Callback):
    """Masks, gradients of the stored weight and magnitudes as an optimizer step finds and leaves them."""

    def __init__(self, place=3):
        self.place, self.masks, self.found, self.density, self.state = place, [], [], [], []

    def on_after_backward(self, trainer, pl_module):
        self.part = pl_module.network.body[self.place].parametrizations.weight
        self.found.append((self.part.original.detach().clone(), self.part.original.grad.clone()))
        self.masks.append(self.part[0].mask.clone())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = trainer.optimizers[0].state[self.part.original]
        self.density.append(self.part[0].mask.sum().item())
        outside = ~self.part[0].mask
        averages = [value for value in state.values() if isinstance(value, torch.Tensor) and value.ndim == 2]
        assert averages
        assert not self.part.original[outside].any()
        assert not any(value[outside].any() for value in averages)


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(module, *callbacks, **kwargs):
        trainer = make_trainer(*callbacks, **{"max_epochs": 4, **kwargs})  # 24 steps
        trainer.fit(module, datamodule=make_data())
        return trainer

    return fit


def expected_mask(weight, grad, mask, fraction, num_active):
    """Algorithm 1 of RigL with lists: drop the smallest active weights, grow where the gradient is the largest."""
    weight, grad, mask = weight.flatten().tolist(), grad.flatten().tolist(), mask.flatten().tolist()
    active = sorted((place for place, kept in enumerate(mask) if kept), key=lambda place: -abs(weight[place]))
    kept = active[: num_active - int(fraction * num_active)]
    others = sorted((place for place in range(len(mask)) if place not in kept), key=lambda place: -abs(grad[place]))
    grown = others[: num_active - len(kept)]
    return [place in kept or place in grown for place in range(len(mask))]


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.AdamW, lr=0.02)])
def test_rigl_by_hand(fit, optimizer):
    notes, module = Notes(), method(optimizer=optimizer)
    fit(module, DynamicSparsity(0.75, interval=5, fraction=0.5, end=0.75), notes)
    assert notes.density == [16] * 24
    changed = [step for step in range(1, 24) if not torch.equal(notes.masks[step], notes.masks[step - 1])]
    assert changed == [6, 11]  # seen after the steps 5 and 10; near the last, 18, the share is too small for one weight
    for step in (5, 10, 15):
        fraction = 0.5 * (1 + math.cos(math.pi * step / 18)) / 2
        expected = expected_mask(*notes.found[step], notes.masks[step], fraction, 16)
        assert notes.masks[step + 1].flatten().tolist() == expected
    assert notes.found[0][1][~notes.masks[0]].any()  # the gradient of the dense weight
    layer = module.network.body[3]
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert (layer.weight != 0).sum() <= 16


@pytest.mark.parametrize("update", ["set", "static"])
def test_the_other_updates(fit, update):
    notes, module = Notes(), method()
    fit(module, DynamicSparsity(0.75, update=update, interval=5, fraction=0.5), notes)
    assert notes.density == [16] * 24
    changed = [step for step in range(1, 24) if not torch.equal(notes.masks[step], notes.masks[step - 1])]
    assert changed == ([6, 11] if update == "set" else [])
    dropped = notes.masks[5] & ~notes.masks[6]
    if update == "set":
        weight, kept = notes.found[5][0].abs(), notes.masks[5] & notes.masks[6]
        assert weight[dropped].max() <= weight[kept].sort().values[-8]


def test_accumulated_gradients_change_the_mask_once(fit):
    module = method()
    trainer = fit(module, DynamicSparsity(0.75, interval=2), accumulate_grad_batches=2)
    assert trainer.global_step == 24
    assert module.network.body[3].parametrizations.weight[0].mask.sum() == 16


@pytest.mark.parametrize("update", ["rigl", "set"])
def test_resumed(run, assert_same_runs, update):
    def callbacks():
        return [DynamicSparsity(0.5, update=update, interval=4), EMA(0.9)]

    whole = run("whole", callbacks=callbacks, method=method)
    assert_same_runs(run("cut", (1, 8, 13), callbacks=callbacks, method=method), whole)


class Doped(Network):
    def __init__(self):
        super().__init__()
        self.feature_dim = 16
        self.body = SparseDopedLinear(6, 16, 0.75)
        self.head = nn.Linear(16, 3)

    def features(self, x):
        return self.body(x.flatten(1)).relu()


def test_the_dense_part_of_a_doped_layer_stays_dense(fit):
    network = Doped()
    fit(method(network), DynamicSparsity(0.75))
    assert parametrize.is_parametrized(network.body.sparse)
    assert not parametrize.is_parametrized(network.body.u)
    assert (network.body.sparse.weight != 0).sum() <= 24


def test_bad_setups_are_refused(fit):
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got 1.0"):
        DynamicSparsity(1.0)
    with pytest.raises(ValueError, match="update must be 'rigl', 'set' or 'static', got 'snfs'"):
        DynamicSparsity(update="snfs")
    with pytest.raises(ValueError, match="interval must be at least 1, .* got 0, 0.3 and 0.75"):
        DynamicSparsity(interval=0)
    with pytest.raises(
        MisconfigurationException, match="set trainer.max_epochs or trainer.max_steps, or update='static'"
    ):
        fit(method(), DynamicSparsity(), max_epochs=-1)
    with pytest.raises(
        MisconfigurationException, match="DynamicSparsity and NMSparsity would both choose which weights"
    ):
        fit(method(), NMSparsity(1, 2), DynamicSparsity())
