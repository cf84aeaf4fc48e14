from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.func import functional_call, grad, vmap

from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import UDIM
from leyden.models import MLP, ConvNet, ViT

SGD = partial(torch.optim.SGD, lr=0.5)


class Seen(Callback):
    """The batches, and the weights before each."""

    def __init__(self):
        self.batches, self.weights = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        self.weights.append({name: p.detach().clone() for name, p in pl_module.network.named_parameters()})


def fit(folder, method, *callbacks, steps=1, **kwargs):
    seen = Seen()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[seen, *callbacks],
        **{"precision": "64-true"} | kwargs,
    )
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=64, seed=0))
    return seen


def network():
    torch.manual_seed(0)
    return MLP(64, 10, (6,), activation=nn.Tanh)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def expected_gradient(net, weights, batch, *, rho, weight=0.0, input_step=0.0):
    """By torch.func: examples one by one, and no closed form."""
    x, target = batch["input"], batch["target"]

    def loss(weights, x, target=target):
        return nn.functional.cross_entropy(functional_call(net, weights, (x,)), target)

    def largest(x):  # L + rho |grad L|
        return loss(weights, x) + rho * flat(grad(loss)(weights, x)).norm()

    def inconsistency(weights, moved):
        def of_one(head, x, label):
            return loss(weights | head, x[None], label[None])

        head = {name: w for name, w in weights.items() if name.startswith("head")}
        source, perturbed = (vmap(grad(of_one), (None, 0, 0))(head, inputs, target) for inputs in (x, moved))
        source, perturbed = ({name: g.flatten(1) for name, g in grads.items()} for grads in (source, perturbed))
        spreads = [
            torch.cat([(grads[name] - source[name].mean(0)).square().mean(0) for name in source])
            for grads in (source, perturbed)
        ]
        mean = sum(spreads) / 2
        distance = sum((spread - mean).square().mean() for spread in spreads) / 2
        return distance + sum(g.square().sum(1).mean() / g.shape[1] for g in perturbed.values())

    g = grad(loss)(weights, x)
    total = grad(loss)({name: w + rho * g[name] / flat(g).norm() for name, w in weights.items()}, x)
    if weight:
        moved = x + input_step * nn.functional.normalize(grad(largest)(x), dim=0)
        added = grad(inconsistency)(weights, moved)
        total = {name: total[name] + weight * added[name] for name in total}
    return total


def assert_step(method, seen, step, **settings):
    """The weights after a step are those of SGD with the expected gradient."""
    after = [*seen.weights, dict(method.network.named_parameters())][step + 1]
    before = seen.weights[step]
    expected = expected_gradient(method.network, before, seen.batches[step], **settings)
    for name, p in after.items():
        torch.testing.assert_close(p, before[name] - 0.5 * expected[name], rtol=1e-8, atol=1e-12)


def test_warm_up_and_then_the_whole_algorithm(tmp_path):
    settings = {"rho": 0.3, "weight": 2.0, "input_step": 1.5}
    method = UDIM(network(), warmup=0.5, optimizer=SGD, **settings)
    seen = fit(tmp_path, method, steps=4)
    for step in (0, 1):
        assert_step(method, seen, step, rho=0.3)
    for step in (2, 3):
        assert_step(method, seen, step, **settings)


def test_no_weight_is_sharpness_aware_minimisation(tmp_path):
    method = UDIM(network(), rho=0.2, weight=0.0, warmup=0.0, optimizer=SGD)
    assert_step(method, fit(tmp_path, method), 0, rho=0.2)


def test_accumulated_micro_batches_count_alike(tmp_path):
    settings = {"rho": 0.3, "weight": 2.0, "input_step": 1.5}
    method = UDIM(network(), warmup=0.0, optimizer=SGD, **settings)
    seen = fit(tmp_path, method, accumulate_grad_batches=2)
    assert [len(batch["input"]) for batch in seen.batches] == [8, 8]
    one, two = (expected_gradient(method.network, seen.weights[0], batch, **settings) for batch in seen.batches)
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p, seen.weights[0][name] - 0.5 * (one[name] + two[name]) / 2, rtol=1e-8, atol=1e-12)


def test_batch_norm_counts_a_step_once_and_low_precision_is_near(tmp_path):
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        method = UDIM(ConvNet(1, 10, width=4), warmup=0.0, weight=1.0, input_step=1.0, rho=0.5, optimizer=SGD)
        start = torch.cat([p.detach().flatten() for p in method.network.parameters()])
        fit(tmp_path, method, precision=precision)
        assert method.network.body[0][1].num_batches_tracked == 1
        found[precision] = torch.cat([p.detach().flatten() for p in method.network.parameters()]) - start
    exact = found["32-true"]
    assert (found["bf16-mixed"] - exact).norm() < 0.3 * exact.norm()


def test_attention_is_differentiated_twice(tmp_path):
    method = UDIM(ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2), warmup=0.0)
    fit(tmp_path, method, precision="32-true")
    assert all(p.isfinite().all() for p in method.network.parameters())


class AddNorm(MethodCallback):
    calls = 0

    def loss_terms(self, method, batch, outputs, terms):
        self.calls += 1
        return terms | {"norm": 0.1 * method.network.head.weight.square().sum()}


class Doubled(MethodCallback):
    def loss_terms(self, method, batch, outputs, terms):
        return {"task": 2.0 * terms["task"]}


def test_terms_of_callbacks(tmp_path):
    settings = {"rho": 0.3, "weight": 2.0, "input_step": 1.5}
    method, callback = UDIM(network(), warmup=0.0, optimizer=SGD, **settings), AddNorm()
    seen = fit(tmp_path, method, callback)
    assert callback.calls == 1
    weight = seen.weights[0]["head.weight"]
    expected = expected_gradient(method.network, seen.weights[0], seen.batches[0], **settings)["head.weight"]
    torch.testing.assert_close(method.network.head.weight, weight - 0.5 * (expected + 0.2 * weight))
    with pytest.raises(MisconfigurationException, match="a callback changes the loss term 'task'"):
        fit(tmp_path, UDIM(network()), Doubled())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rho": -1.0}, "rho must be at least 0, got -1"),
        ({"input_step": float("nan")}, "input_step must be at least 0, got nan"),
        ({"warmup": 1.5}, r"warmup must lie in \[0, 1\], got 1.5"),
        ({"loss": nn.MultiMarginLoss()}, "loss must be cross entropy, whose gradients UDIM knows, got MultiMarginLoss"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        UDIM(network(), **arguments)


def test_what_does_not_fit(tmp_path):
    deep = network()
    deep.head = nn.Sequential(nn.Linear(6, 10))
    with pytest.raises(MisconfigurationException, match="whose head is a linear layer, got Sequential"):
        fit(tmp_path, UDIM(deep))
    with pytest.raises(MisconfigurationException, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        fit(tmp_path, UDIM(network()), steps=-1, max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="has samples without"):
        UDIM(network()).training_step({"labeled": torch.ones(2)}, 0)
