from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.func import functional_call, grad

from leyden.callbacks import Mixup
from leyden.core import MethodCallback
from leyden.data import DigitQuestions
from leyden.methods import FlatMultiTask
from leyden.models import MLP, ConvNet
from leyden.optim import cagrad, imtl_g

HEADS = {"odd": 2, "large": 2}
SGD = partial(torch.optim.SGD, lr=0.5)


class Seen(Callback):
    """The batches, and the weights before the first."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.batches:
            self.weights = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
        self.batches.append(batch)


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
    trainer.fit(method, datamodule=DigitQuestions(batch_size=16, num_train=64, seed=0))
    return seen


def network(num_outputs=4):
    torch.manual_seed(0)
    return MLP(64, num_outputs, (6,), activation=nn.Tanh)


def pcgrad_by_hand(grads):
    if len(grads) == 1:
        return grads[0]
    first, second = grads
    inner = (first @ second).clamp(max=0.0)
    return first - inner * second / second.square().sum() + second - inner * first / first.square().sum()


def expected_gradient(net, weights, batch, rho, heads=HEADS, *, aggregate=pcgrad_by_hand, adaptive=False):
    """By torch.func."""
    first = dict(zip(heads, range(0, 4, 2), strict=False))  # output of each task

    def loss(weights, task):
        logits = functional_call(net, weights, (batch["input"],))
        return nn.functional.cross_entropy(logits[:, first[task] : first[task] + 2], batch[task])

    at_weights, sam = [], []
    for task in heads:
        g = grad(loss)(weights, task)
        size = {name: w.abs() if adaptive else 1.0 for name, w in weights.items()}
        norm = torch.cat([(size[name] * g[name]).flatten() for name in g]).norm()
        moved = {name: w + rho * size[name] ** 2 * g[name] / norm for name, w in weights.items()}
        at_weights.append(g)
        sam.append(grad(loss)(moved, task))
    body = [name for name in weights if name.startswith("body")]
    rows, sam_rows = (
        torch.stack([torch.cat([g[name].flatten() for name in body]) for g in k]) for k in (at_weights, sam)
    )
    total = aggregate(rows)
    if rho:
        total = total + aggregate(sam_rows - rows)
    parts = total.split([weights[name].numel() for name in body])
    of_body = {name: part.view_as(weights[name]) for name, part in zip(body, parts, strict=True)}
    return of_body | {name: sum(g[name] for g in sam) for name in weights if name not in body}


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("heads", [HEADS, {"odd": 2}])  # one task: sharpness-aware minimisation
def test_a_step_is_that_of_the_algorithm(rho, heads, tmp_path):
    method = FlatMultiTask(network(2 * len(heads)), heads, rho=rho, optimizer=SGD)
    seen = fit(tmp_path, method)
    expected = expected_gradient(method.network, seen.weights, seen.batches[0], rho, heads)
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p, seen.weights[name] - 0.5 * expected[name], rtol=1e-9, atol=1e-12)


def test_accumulated_micro_batches_count_alike(tmp_path):
    method = FlatMultiTask(network(), HEADS, rho=0.3, optimizer=SGD)
    seen = fit(tmp_path, method, accumulate_grad_batches=2)
    assert [len(batch["input"]) for batch in seen.batches] == [8, 8]
    one, two = (expected_gradient(method.network, seen.weights, batch, 0.3) for batch in seen.batches)
    for name, p in method.network.named_parameters():
        expected = seen.weights[name] - 0.5 * (one[name] + two[name]) / 2
        torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "aggregate"), [("cagrad", cagrad), ("imtl_g", imtl_g)])
def test_other_aggregates_and_the_adaptive_radius(name, aggregate, tmp_path):
    method = FlatMultiTask(network(), HEADS, rho=2.0, adaptive=True, aggregate=name, optimizer=SGD)
    seen = fit(tmp_path, method)
    settings = {"aggregate": aggregate, "adaptive": True}
    expected = expected_gradient(method.network, seen.weights, seen.batches[0], 2.0, **settings)
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p, seen.weights[name] - 0.5 * expected[name], rtol=1e-6, atol=1e-9)


def weights(method):
    return torch.cat([p.detach().flatten().double() for p in method.network.parameters()])


def test_low_precision_perturbs_the_weights(tmp_path):
    methods = [FlatMultiTask(network(), HEADS, rho=rho, optimizer=SGD) for rho in (0.0, 0.5)]
    exact = FlatMultiTask(network(), HEADS, rho=0.5, optimizer=SGD)
    for method in methods:
        fit(tmp_path, method, precision="bf16-mixed")
    fit(tmp_path, exact)
    plain, sam, exact = map(weights, (*methods, exact))
    assert (sam - exact).norm() < 0.2 * (sam - plain).norm()


def test_batch_norm_counts_a_step_once(tmp_path):
    torch.manual_seed(0)
    method = FlatMultiTask(ConvNet(1, 4, width=4), HEADS, optimizer=SGD)
    norm = method.network.body[0][1]
    seen = fit(tmp_path, method)
    torch.manual_seed(0)
    once = ConvNet(1, 4, width=4).double()
    once(seen.batches[0]["input"])
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, once.body[0][1].running_mean)


class AddNorm(MethodCallback):
    def loss_terms(self, method, batch, outputs, terms):
        self.calls = getattr(self, "calls", 0) + 1
        return terms | {"norm": 0.1 * method.network.head.weight.square().sum()}


class Doubled(MethodCallback):
    def loss_terms(self, method, batch, outputs, terms):
        return terms | {"odd": 2.0 * terms["odd"]}


def test_terms_of_callbacks(tmp_path):
    method, callback = FlatMultiTask(network(), HEADS, rho=0.3, optimizer=SGD), AddNorm()
    seen = fit(tmp_path, method, callback)
    assert callback.calls == 1
    expected = expected_gradient(method.network, seen.weights, seen.batches[0], 0.3)["head.weight"]
    expected += 0.2 * seen.weights["head.weight"]
    torch.testing.assert_close(method.network.head.weight, seen.weights["head.weight"] - 0.5 * expected)
    with pytest.raises(MisconfigurationException, match="a callback changes the loss term 'odd'"):
        fit(tmp_path, FlatMultiTask(network(), HEADS), Doubled())


def test_metrics_and_soft_targets():
    method = FlatMultiTask(network(), HEADS)
    batch = {"input": torch.rand(6, 64), "odd": torch.arange(6) % 2, "large": torch.arange(6) // 3}
    outputs = method.compute(batch)
    soft = batch | {name: nn.functional.one_hot(batch[name], 2).float() for name in HEADS}
    hard_terms, soft_terms = (method.loss_terms(one, outputs) for one in (batch, soft))
    assert list(hard_terms) == ["odd", "large"]
    torch.testing.assert_close(hard_terms, soft_terms)
    for one in (batch, soft):
        method.validation_step(one, 0)
    values = method.metrics["val"].compute()
    for task, logits in zip(HEADS, outputs.logits.split(2, -1), strict=True):
        right = (logits.argmax(-1) == batch[task]).double().mean().item()
        assert values[f"val/accuracy_{task}"].item() == pytest.approx(right)
    mean = sum(values[f"val/accuracy_{task}"].item() for task in HEADS) / 2
    assert values["val/accuracy"].item() == pytest.approx(mean)
    with pytest.raises(ValueError, match=r"FlatMultiTask needs the batch keys \['large'\]"):
        method.loss_terms({"input": batch["input"], "odd": batch["odd"]}, outputs)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"heads": {}}, "heads must map one or more tasks"),
        ({"heads": {"odd": 0}}, "heads must map one or more tasks"),
        ({"heads": HEADS, "rho": -0.1}, "rho must be at least 0, got -0.1"),
        ({"heads": HEADS, "aggregate": "mean"}, "aggregate must be one of cagrad, imtl_g, pcgrad, got 'mean'"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        FlatMultiTask(network(), **arguments)


def test_what_does_not_fit(tmp_path):
    with pytest.raises(MisconfigurationException, match="a callback mixed the samples"):
        fit(tmp_path, FlatMultiTask(network(), HEADS), Mixup())
    with pytest.raises(MisconfigurationException, match="heads has 4 classes, but the network has 3 outputs"):
        fit(tmp_path, FlatMultiTask(network(3), HEADS))
