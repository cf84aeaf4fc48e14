import importlib
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from leyden.callbacks import DSnoT, LastCheckpoint
from leyden.core import Network
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.weights import dsnot_mask, wanda_mask


def method(network=None):
    torch.manual_seed(0)
    network = network or MLP(6, 3, (16, 16))
    return Classification(network, optimizer=partial(torch.optim.SGD, lr=0.1))


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(module, *callbacks, data=None, **kwargs):
        trainer = make_trainer(*callbacks, **{"max_epochs": 1, **kwargs})
        trainer.fit(module, datamodule=data or make_data())
        return trainer

    return fit


def expected_masks(network, x, **knobs):
    """By hand, with all 48 training samples: the second layer sees what the pruned first one gives."""
    masks = []
    with torch.no_grad():
        for layer in (network.body[0], network.body[3]):
            statistics = {"input_sum": x.mean(0), "input_var": x.var(0, unbiased=False), "input_sq": x.square().mean(0)}
            keep = wanda_mask(layer.weight, statistics["input_sq"], 0.5)
            masks.append(dsnot_mask(layer.weight, keep, **statistics, **knobs))
            x = (x @ (layer.weight * masks[-1]).T + layer.bias).relu()
    return masks


def test_layer_by_layer(fit, make_data):
    dense, pruned, wanda = method(), method(), method()
    fit(dense)
    fit(pruned, DSnoT(0.5, threshold=0.01))
    fit(wanda, DSnoT(0.5, max_cycles=0))
    x = make_data().datasets()["train"].__getitems__(list(range(48)))["input"]
    masks = expected_masks(dense.network, x, threshold=0.01)
    for place, mask in zip((0, 3), masks, strict=True):
        assert torch.equal(pruned.network.body[place].weight, dense.network.body[place].weight * mask)
    for place, mask in zip((0, 3), expected_masks(dense.network, x, max_cycles=0), strict=True):
        assert torch.equal(wanda.network.body[place].weight, dense.network.body[place].weight * mask)
    assert not torch.equal(wanda.network.body[3].weight != 0, masks[1])
    assert torch.equal(pruned.network.head.weight, dense.network.head.weight)


def test_by_magnitude(fit):
    dense, pruned = method(), method()
    fit(dense)
    fit(pruned, DSnoT((1, 2), init="magnitude", max_cycles=0))
    weight = dense.network.body[0].weight
    assert torch.equal(pruned.network.body[0].weight, weight * wanda_mask(weight, torch.ones(6), (1, 2)))


def test_what_is_loaded_is_pruned_before_it_is_evaluated(fit, make_trainer, make_data):
    pruned = method()
    trainer = fit(pruned, DSnoT(0.5), LastCheckpoint())
    last = trainer.checkpoint_callback.last_model_path
    assert (torch.load(last, weights_only=True)["state_dict"]["network.body.0.weight"] != 0).all()
    trainer.test(pruned, datamodule=make_data(), verbose=False)  # a second time changes nothing
    for run in ("validate", "test", "predict"):
        module = method()
        getattr(make_trainer(DSnoT(0.5)), run)(module, datamodule=make_data(), ckpt_path=last, weights_only=True)
        assert torch.equal(module.network.body[3].weight, pruned.network.body[3].weight)
        assert (module.network.body[3].weight == 0).sum() == 128


class Convolutions(Network):
    def __init__(self, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.strange = nn.Conv2d(4, 6, (3, 2), **kwargs)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = 6
        self.head = nn.Linear(6, 10)

    def features(self, x):
        return self.pool(self.strange(self.conv(x).relu()).relu()).flatten(1)


KINDS = [
    {},
    {"stride": 2, "padding": (1, 0), "dilation": (1, 2)},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_convolution_are_what_it_multiplies(kind):
    module = importlib.import_module("leyden.callbacks.dsnot")
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), **kind).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    tokens = module._tokens(layer, x)  # [N, places, I]
    out = tokens @ module._rows(layer.weight).T + layer.bias
    torch.testing.assert_close(out.transpose(1, 2).reshape(layer(x).shape), layer(x))


def test_groups_of_a_convolution_run_along_its_channels(fit):
    module = method(Convolutions())
    fit(module, DSnoT((2, 4)), data=Digits(num_train=32, batch_size=16, seed=0))
    kept = module.network.strange.weight.movedim(1, -1).unflatten(-1, (-1, 4)) != 0
    assert kept.sum(-1).unique().tolist() == [2]
    assert (module.network.conv.weight != 0).all()
    whole = method(ConvNet(1, 10, width=4))
    fit(whole, DSnoT(0.5), data=Digits(num_train=32, batch_size=16, seed=0))
    assert (whole.network.body[2][0].weight == 0).float().mean() == 0.5


def test_bad_setups_are_refused(fit, make_trainer, make_data):
    with pytest.raises(ValueError, match="init must be 'wanda' or 'magnitude', got 'sparsegpt'"):
        DSnoT(init="sparsegpt")
    with pytest.raises(ValueError, match="batches must be at least 1, .* got 0, 50 and 0.1"):
        DSnoT(batches=0)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], got -0.1"):
        DSnoT(-0.1)
    with pytest.raises(ValueError, match="n must lie in 1 to m, got n=9 and m=8"):
        DSnoT((9, 8))
    loader = DataLoader(make_data().datasets()["train"], 8, collate_fn=lambda batch: batch)
    with pytest.raises(MisconfigurationException, match=r"train with a leyden.data.DataModule"):
        make_trainer(DSnoT()).validate(method(), loader)
