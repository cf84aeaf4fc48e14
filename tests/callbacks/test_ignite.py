from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional

from leyden.callbacks import IGNITE, ignite_multiplier
from leyden.core import Outputs
from leyden.data import Diabetes
from leyden.methods import Classification, Regression
from leyden.models import MLP


class Batches(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((batch["input"], batch["target"]))


def network(hidden=(6,)):
    torch.manual_seed(0)
    return MLP(10, 1, hidden, activation=nn.Tanh)


def fit(make_trainer, *callbacks, hidden=(6,), **kwargs):
    method = Regression(network(hidden), optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer(*callbacks, max_steps=3, limit_val_batches=0, precision="64-true", **kwargs)
    trainer.fit(method, datamodule=Diabetes(batch_size=8, seed=1))
    return method


def by_hand(batches, *, multiplier, rho, eps, dual_lr, accumulate, r=1e-6):
    """The authors' step, with the gradient of the norm by their finite difference, and SGD."""
    surrogate = network().double()
    w = {name: p.detach().clone() for name, p in surrogate.named_parameters()}
    for start in range(0, len(batches), accumulate):
        total, norms = dict.fromkeys(w, 0.0), []
        for x, y in batches[start : start + accumulate]:
            loss = grad(lambda w, x=x, y=y: functional.mse_loss(functional_call(surrogate, w, (x,)), y))(w)
            sharpness = grad(lambda w, x=x: functional_call(surrogate, w, (x,)).sum() / len(x))
            here = sharpness(w)
            norm = torch.stack([g.square().sum() for g in here.values()]).sum().sqrt()
            there = sharpness({name: w[name] + r * here[name] / norm for name in w})
            norms.append(norm.item())
            for name in w:
                total[name] = total[name] + loss[name] + multiplier * rho / r * (there[name] - here[name])
        w = {name: w[name] - 0.1 * total[name] / accumulate for name in w}
        multiplier = multiplier + dual_lr * (rho * sum(norms) / accumulate - eps)
    return w, multiplier


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_the_authors(make_trainer, accumulate):
    batches, ignite = Batches(), IGNITE(0.5, rho=0.4, eps=0.1, dual_lr=0.2)
    method = fit(make_trainer, ignite, batches, accumulate_grad_batches=accumulate)
    knobs = {"multiplier": 0.5, "rho": 0.4, "eps": 0.1, "dual_lr": 0.2}
    weights, multiplier = by_hand(batches.seen, **knobs, accumulate=accumulate)
    assert ignite.multiplier.item() == pytest.approx(multiplier, rel=1e-6)
    assert abs(multiplier - 0.5) > 0.01
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-5, atol=1e-6)


def test_a_fixed_multiplier_stays(make_trainer):
    ignite = IGNITE(0.0, adaptive=False)
    plain, fixed = fit(make_trainer), fit(make_trainer, ignite)
    assert ignite.multiplier.item() == 0.0
    assert all(map(torch.equal, plain.parameters(), fixed.parameters()))


def test_a_linear_surrogate_has_nothing_to_be_penalized(make_trainer):
    # grad mean(w x + b) = (mean x, 1), whatever w and b are
    batches, ignite = Batches(), IGNITE(100.0, rho=1.0, eps=0.0, dual_lr=1.0)
    plain, penalized = fit(make_trainer, hidden=()), fit(make_trainer, ignite, batches, hidden=())
    assert all(map(torch.equal, plain.parameters(), penalized.parameters()))
    norms = [(1.0 + x.mean(0).square().sum()).sqrt().item() for x, _ in batches.seen]
    assert ignite.multiplier.item() == pytest.approx(100.0 + sum(norms), rel=1e-6)


def test_mean_of_logsumexp():
    # at zero weights all C classes have p = 1/C, and the gradient of the mean is p times (mean x, 1)
    method = Classification(MLP(3, 4, ()))
    nn.init.zeros_(method.network.head.weight)
    nn.init.zeros_(method.network.head.bias)
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    ignite = IGNITE(2.0, rho=0.5, output="logsumexp")
    ignite._parameters = dict(method.named_parameters())
    terms = ignite.loss_terms(method, {}, Outputs(logits=method.network(x)), {"task": torch.tensor(1.0)})
    assert list(terms) == ["task", "ignite"]
    assert terms["ignite"].item() == pytest.approx((0.25 * (1.0 + 4.0 + 1.0 + 0.25)) ** 0.5)


def test_multiplier_by_hand():
    def multiplier(start, norm):
        return ignite_multiplier(torch.tensor(start), torch.tensor(norm)).item()

    assert multiplier(0.01, 2.0) == pytest.approx(0.01)  # rho norm = eps
    assert multiplier(0.01, 12.0) == pytest.approx(0.01 + 1e-3 * 0.5)
    assert multiplier(0.00001, 0.0) == 0.0  # not below, as it would be in the authors' code


def test_saved_multiplier_goes_on():
    ignite = IGNITE()
    assert ignite.multiplier.item() == pytest.approx(1e-3)
    ignite.load_state_dict({"multiplier": torch.tensor(0.25)})
    assert ignite.state_dict() == {"multiplier": torch.tensor(0.25)}


def test_bad_input():
    for name in ("weight", "rho", "eps", "dual_lr"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            IGNITE(**{name: -1.0})
    with pytest.raises(ValueError, match="output must be 'mean' or 'logsumexp', got 'max'"):
        IGNITE(output="max")
