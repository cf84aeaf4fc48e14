import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.utils import parametrize

from leyden.callbacks import WeightCompanding


def test_weights_and_their_bounds_are_trained(make_trainer, make_method, make_data):
    method = make_method()
    layer, head = method.network.body[0], method.network.head
    before = layer.weight.detach().clone()
    make_trainer(WeightCompanding(0.8, 0.4, skip=["head"]), max_epochs=1).fit(method, datamodule=make_data())
    (compander,) = layer.parametrizations.weight
    assert compander.log_a.exp().item() != pytest.approx(0.8, abs=1e-4)
    assert compander.log_b.exp().item() != pytest.approx(0.4, abs=1e-4)
    assert not torch.equal(layer.weight, before)
    assert not parametrize.is_parametrized(head)


def test_fixed_bounds_stay(make_trainer, make_method, make_data):
    method = make_method()
    trainer = make_trainer(WeightCompanding(0.8, 0.4, learnable=False), max_epochs=1)
    trainer.fit(method, datamodule=make_data())
    for layer in (method.network.body[0], method.network.head):
        (compander,) = layer.parametrizations.weight
        assert compander.log_a.exp().item() == pytest.approx(0.8)
        assert compander.log_b.exp().item() == pytest.approx(0.4)


def test_cut_runs_end_in_the_same_bits(run, assert_same_runs):
    def callbacks():
        return [WeightCompanding(0.8, 0.4)]

    assert_same_runs(run("whole", callbacks=callbacks), run("cut", [2, 6, 15], callbacks=callbacks))


def test_bad_input(make_trainer, make_method, make_data):
    with pytest.raises(ValueError, match="b must be positive and finite, got 0"):
        WeightCompanding(b=0.0)
    for callback, line in (
        (WeightCompanding(skip=["haed"]), "WeightCompanding: skip: there is no module 'haed' in MLP; near it: head"),
        (
            WeightCompanding(a=0.01),
            "WeightCompanding: body.0: a=0.01 bounds weights to 0.0156, but one is .*increase a",
        ),
    ):
        with pytest.raises(MisconfigurationException, match=line):
            make_trainer(callback).fit(make_method(), datamodule=make_data())
