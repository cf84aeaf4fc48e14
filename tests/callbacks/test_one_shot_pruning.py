from functools import partial

import pytest
import torch

from leyden.callbacks import EMA, LastCheckpoint, NMSparsity, OneShotPruning
from leyden.methods import Classification
from leyden.models import MLP
from leyden.nn import nm_mask
from leyden.weights import magnitude_prune


def method():
    torch.manual_seed(0)
    return Classification(MLP(6, 3, (8, 8)), optimizer=partial(torch.optim.SGD, lr=0.1))


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(*callbacks, **kwargs):
        module = method()
        trainer = make_trainer(*callbacks, **{"max_epochs": 1, **kwargs})
        trainer.fit(module, datamodule=make_data())
        return module, trainer

    return fit


def test_training_is_that_without_it_and_the_end_is_pruned(fit):
    dense, trainer = fit(EMA(0.9))
    pruned, other = fit(EMA(0.9), OneShotPruning(0.7))
    assert other.callback_metrics["val/loss"] == trainer.callback_metrics["val/loss"]
    keys = ["body.0.weight", "body.3.weight"]
    expected = magnitude_prune(dense.network.state_dict(), 0.7, keys=keys)
    for name, tensor in pruned.network.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert sum((pruned.network.get_parameter(key) == 0).sum().item() for key in keys) == round(0.7 * 112)


def test_groups(fit):
    dense, _ = fit()
    pruned, _ = fit(OneShotPruning((1, 2), skip=("head", "body.3")))
    weight = dense.network.body[0].weight
    assert torch.equal(pruned.network.body[0].weight, weight * nm_mask(weight, 1, 2))
    assert torch.equal(pruned.network.body[3].weight, dense.network.body[3].weight)


def test_what_is_loaded_is_pruned_before_it_is_evaluated(fit, make_trainer, make_data):
    pruned, trainer = fit(OneShotPruning(0.5, scope="layer"), LastCheckpoint())
    last = trainer.checkpoint_callback.last_model_path
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert (saved["network.body.0.weight"] != 0).all()  # the checkpoint is dense
    for run in ("validate", "test", "predict"):
        module = method()
        trainer = make_trainer(OneShotPruning(0.5, scope="layer"))
        getattr(trainer, run)(module, datamodule=make_data(), ckpt_path=last, weights_only=True)
        assert torch.equal(module.network.body[0].weight, pruned.network.body[0].weight)
        assert (module.network.body[0].weight == 0).sum() == 24


def test_prunes_what_is_stored_of_a_parametrized_weight(fit):
    module, _ = fit(NMSparsity(1, 2), OneShotPruning(0.9, skip=("head", "body.3")))
    layer = module.network.body[0]
    assert (layer.parametrizations.weight.original == 0).sum() == round(0.9 * 48)
    assert (layer.weight == 0).sum() >= round(0.9 * 48)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got 1.5"):
        OneShotPruning(1.5)
    with pytest.raises(ValueError, match="scope must be 'global' or 'layer', got 'row'"):
        OneShotPruning(scope="row")
    with pytest.raises(ValueError, match=r"sparsity must be a share, or \(n, m\) with 1 <= n <= m, got \(9, 8\)"):
        OneShotPruning((9, 8))
