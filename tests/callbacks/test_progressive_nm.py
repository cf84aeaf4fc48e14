from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import EMA, NMSparsity, ProgressiveNM
from leyden.methods import Classification
from leyden.models import MLP


def method(hidden=(16, 16)):
    torch.manual_seed(0)
    return Classification(MLP(6, 3, hidden), optimizer=partial(torch.optim.SGD, lr=0.1))


class Notes(Callback):
    """What the structure is in each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        part = pl_module.network.body[3].parametrizations.weight[0]
        self.steps.append((f"{part.n}:{part.m}", round(part.factor.item(), 6)))


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(module, *callbacks, **kwargs):
        trainer = make_trainer(*callbacks, **{"max_epochs": 20, **kwargs})  # 120 steps
        trainer.fit(module, datamodule=make_data())
        return trainer

    return fit


def borders(steps):
    """Numbers of the steps in which something changed, and to what."""
    return {number: value for number, value in enumerate(steps) if number == 0 or value != steps[number - 1]}


def test_phases_are_those_of_the_authors_code(fit):
    """Its ``get_decay_config`` for 120 epochs, of which 12 are dense and 12 fine-tuning (steps here)."""
    notes, module = Notes(), method()
    fit(module, ProgressiveNM(1, 16, skip=("head", "body.0")), notes)
    expected = {0: ("15:16", 1.0), 12: ("15:16", 0.0), 31: ("8:16", 0.0), 50: ("4:16", 0.0), 69: ("2:16", 0.0)}
    assert borders(notes.steps) == expected | {88: ("1:16", 0.0)}
    assert module.network.body[3].weight.count_nonzero() == 16


def test_the_mask_decays_until_the_last_phase(fit):
    notes, module = Notes(), method()
    decay = ProgressiveNM(2, 16, mask_decay="linear", structure=None, coefficient=0.01, skip=("head", "body.0"))
    fit(module, decay, EMA(0.9), notes)
    assert {structure for structure, _ in notes.steps} == {"2:16"}
    expected = [1.0] * 12 + [round(1 - 0.01 * step, 6) for step in range(96)] + [0.0] * 12
    assert [factor for _, factor in notes.steps] == pytest.approx(expected)
    assert module.network.body[3].weight.count_nonzero() == 32


def test_the_dense_phase_is_dense_training(fit):
    plain, module = method(), method()
    fit(plain, max_epochs=2)
    fit(module, ProgressiveNM(1, 16, dense_fraction=1.0, final_fraction=0.0, skip=("head", "body.0")), max_epochs=2)
    original = module.network.body[3].parametrizations.weight.original
    assert torch.equal(original, plain.network.body[3].weight)
    assert module.network.body[3].weight.count_nonzero() == 16  # what is evaluated has the final structure


def test_without_decay_and_structure_it_is_straight_through(fit):
    ours, theirs = method(), method()
    skip = ("head", "body.0")
    at_once = ProgressiveNM(1, 8, structure=None, dense_fraction=0.0, final_fraction=0.0, skip=skip)
    fit(ours, at_once, max_epochs=2)
    fit(theirs, NMSparsity(1, 8, decay=0.0, skip=skip), max_epochs=2)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_resumed_in_every_phase(run, assert_same_runs):
    def callbacks():
        return [ProgressiveNM(1, 8, mask_decay="exp", coefficient=0.1, skip=("head",)), EMA(0.9)]

    def make():
        return Classification(MLP(6, 3, (8, 8)), optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))

    whole = run("whole", callbacks=callbacks, method=make)
    assert_same_runs(run("cut", (1, 7, 12, 22), callbacks=callbacks, method=make), whole)


def test_bad_setups_are_refused(fit):
    with pytest.raises(ValueError, match="m / n must be a power of 2"):
        ProgressiveNM(3, 8)
    with pytest.raises(ValueError, match="kind must be 'linear', 'exp' or 'step', got 'cosine'"):
        ProgressiveNM(mask_decay="cosine")
    with pytest.raises(ValueError, match="together at most 1, got 0.6 and 0.5"):
        ProgressiveNM(dense_fraction=0.6, final_fraction=0.5)
    with pytest.raises(ValueError, match="n must lie in 1 to m, got n=5 and m=4"):
        ProgressiveNM(5, 4, structure=None)
    with pytest.raises(ValueError, match="body.3 has 16 inputs, no multiple of 32: add it to skip"):
        fit(method(), ProgressiveNM(2, 4, structure="geometric"))
    with pytest.raises(MisconfigurationException, match="divides the fit into phases: set trainer.max_epochs"):
        fit(method(), ProgressiveNM(1, 16), max_epochs=-1)
