from functools import partial

import pytest
import torch
from torch.nn.utils import parametrize

from leyden.callbacks import EMA, NMSparsity
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.nn import nm_mask


def method(network=None, **kwargs):
    torch.manual_seed(0)
    kwargs.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
    return Classification(network or MLP(6, 3, (8, 8)), **kwargs)


@pytest.fixture
def fit(make_trainer, make_data):
    def fit(module, *callbacks, batch_size=8, **kwargs):
        trainer = make_trainer(*callbacks, **{"max_epochs": 1, **kwargs})
        trainer.fit(module, datamodule=make_data(batch_size))
        return trainer

    return fit


def test_sparse_from_the_first_step_on(fit):
    module = method()
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(module, NMSparsity(1, 8, skip=("head", "body.0")))  # 6 inputs
    assert list(module.network.body[0].state_dict()) == ["weight", "bias"]
    layer = module.network.body[3]
    moved = layer.parametrizations.weight.original != dense["network.body.3.weight"]
    assert moved[layer.weight == 0].any()  # straight through
    assert (layer.weight.unflatten(1, (-1, 8)) != 0).sum(-1).unique().tolist() == [1]


def reference_step(network, batch, *, decay, lr):
    """One step of SGD with equation 9 in float64."""
    weights = {name: p.detach().double().requires_grad_() for name, p in network.named_parameters()}
    masks = {name: nm_mask(p, 1, 2) for name, p in weights.items() if name in ("body.0.weight", "body.3.weight")}
    used = {name: p * masks[name] if name in masks else p for name, p in weights.items()}
    x = batch["input"].double().flatten(1)
    for layer in ("body.0", "body.3"):
        x = (x @ used[f"{layer}.weight"].T + used[f"{layer}.bias"]).relu()
    logits = x @ used["head.weight"].T + used["head.bias"]
    for tensor in used.values():
        tensor.retain_grad()
    torch.nn.functional.cross_entropy(logits, batch["target"]).backward()
    gradients = {name: tensor.grad for name, tensor in used.items()}
    for name, mask in masks.items():
        gradients[name] = gradients[name] + decay * ~mask * weights[name]
    return {name: (p - lr * gradients[name]).detach() for name, p in weights.items()}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_by_hand(fit, make_data, accumulate):
    """The pull counts once in a step, also where its gradient comes in four parts."""
    batch = make_data().datasets()["train"].__getitems__(list(range(48)))
    module = method()
    expected = reference_step(module.network, batch, decay=0.3, lr=0.1)
    trainer = fit(module, NMSparsity(1, 2, decay=0.3), batch_size=48, accumulate_grad_batches=accumulate)
    assert trainer.global_step == 1
    found = {
        name.replace("parametrizations.weight.original", "weight"): p for name, p in module.network.named_parameters()
    }
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].detach().double(), weight, rtol=0, atol=1e-6)


def test_plain_straight_through_has_no_term(fit):
    module = method()
    trainer = fit(module, NMSparsity(1, 2, decay=0.0))
    assert "train/sr_ste_epoch" not in trainer.callback_metrics
    trainer = fit(method(), NMSparsity(1, 2))
    assert trainer.callback_metrics["train/sr_ste_epoch"] > 0.0


def test_the_average_of_the_weights_is_sparse_too(fit):
    module = method()
    trainer = fit(module, NMSparsity(2, 4, skip=("head", "body.0")), EMA(0.9), max_epochs=2)
    layer = module.network.body[3]
    x = torch.randn(4, 8)
    output = layer(x)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert (layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1).unique().tolist() == [2]
    assert torch.equal(layer(x), output)
    assert trainer.global_step == 12


def test_two_patterns_in_one_network(fit):
    module = method(MLP(6, 3, (8, 8, 8)))
    first, second = (
        NMSparsity(2, 4, skip=("head", "body.0", "body.6")),
        NMSparsity(1, 8, skip=("head", "body.0", "body.3")),
    )
    fit(module, first, second)
    kept = [(module.network.body[place].weight != 0).sum().item() for place in (3, 6)]
    assert kept == [32, 8]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(fit, precision):
    module = method()
    fit(module, NMSparsity(1, 2), precision=precision)
    assert (module.network.body[0].weight != 0).sum() == 8 * 3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_compiled(fit, monkeypatch):
    plain, compiled = method(), method()
    fit(plain, NMSparsity(1, 2))
    monkeypatch.setattr(compiled, "_run_network", torch.compile(compiled._run_network, backend="eager"))
    fit(compiled, NMSparsity(1, 2))
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_bad_setups_are_refused(fit):
    with pytest.raises(ValueError, match="n must lie in 1 to m, got n=5 and m=4"):
        NMSparsity(5, 4)
    with pytest.raises(ValueError, match="decay must be at least 0, got -0.1"):
        NMSparsity(decay=-0.1)
    with pytest.raises(ValueError, match="MLP has no linear layer or convolution with a multiple of 16 inputs"):
        fit(method(), NMSparsity(1, 16))
    with pytest.raises(ValueError, match="there is no module 'classifier' in ConvNet"):
        fit(method(ConvNet()), NMSparsity(skip=("classifier",)))
