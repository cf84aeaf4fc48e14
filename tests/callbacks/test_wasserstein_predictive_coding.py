from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import WassersteinPredictiveCoding
from leyden.core import Outputs, rank
from leyden.data import Digits, StackedDigits
from leyden.losses import lipschitz_penalty, wasserstein_dependency_loss
from leyden.methods import Classification
from leyden.models import MLP, ConvNet, LinearProbe


def example(**kwargs):
    """A callback with its method, and a batch of two views."""
    torch.manual_seed(0)
    method = Classification(MLP(6, 3, (8,), activation=nn.Tanh))
    callback = WassersteinPredictiveCoding(**kwargs)
    callback.build(method)
    generator = torch.Generator().manual_seed(1)
    views = {name: torch.randn(8, 6, generator=generator) for name in ("input", "input_2")}
    return callback, method, views | {"target": torch.zeros(8, dtype=torch.long)}


def terms_of(callback, method, batch):
    return callback.loss_terms(method, batch, method.compute(batch), {"task": torch.tensor(1.0)})


@pytest.mark.parametrize("form", ["nce", "dual"])
def test_terms(form):
    callback, method, batch = example(weight=0.5, penalty=2.0, form=form)
    (matrix,) = (module.weight for module in method.attached.values())

    def scores(x, y):
        return (method.network.features(y) @ matrix @ method.network.features(x).T).T  # [N, N]

    views = batch["input"], batch["input_2"]
    wpc = 0.5 * wasserstein_dependency_loss(scores(*views), form=form)
    lipschitz = 2.0 * lipschitz_penalty(lambda x, y: scores(x, y).diagonal(), *views)
    terms = terms_of(callback, method, batch)
    torch.testing.assert_close(terms, {"task": torch.tensor(1.0), "wpc": wpc, "lipschitz": lipschitz})


def test_without_penalty():
    callback, method, batch = example(penalty=0.0)
    assert [*terms_of(callback, method, batch)] == ["task", "wpc"]


def fit(callback, network, data, max_epochs=1):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        limit_val_batches=0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    torch.manual_seed(0)
    trainer.fit(Classification(network, optimizer=partial(torch.optim.Adam, lr=3e-3)), data)
    return trainer


def test_a_fit_tells_views_apart_with_a_gradient_of_norm_one():
    data = StackedDigits(num_digits=2, num_stacks=512, batch_size=32, seed=0)
    callback = WassersteinPredictiveCoding()
    method = fit(callback, LinearProbe(MLP(128, 10, (32,))), data, max_epochs=4).lightning_module
    batch = {name: x[:32] for name, x in data.dataset("test").tensors.items()}
    terms = terms_of(callback, method, batch)
    assert terms["wpc"] < -0.3  # 0 by chance
    assert terms["lipschitz"] < 0.3  # 1 where nothing is learned


def test_bad_input():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        WassersteinPredictiveCoding(-1.0)
    with pytest.raises(ValueError, match="penalty must be at least 0, got -1"):
        WassersteinPredictiveCoding(penalty=-1.0)
    with pytest.raises(ValueError, match="form must be 'nce' or 'dual', got 'kl'"):
        WassersteinPredictiveCoding(form="kl")
    with pytest.raises(ValueError, match=r"needs the batch keys \['input_2'\]"):
        fit(WassersteinPredictiveCoding(), MLP(64, 10), Digits(num_train=64))
    with pytest.raises(MisconfigurationException, match="is a batch norm, which mixes them"):
        fit(WassersteinPredictiveCoding(), ConvNet(1, 10, width=4), Digits(num_train=64))
    callback, method, batch = example()
    outputs = Outputs(logits=torch.zeros(8, 2, 3), features=torch.zeros(8, 2, 8))
    with pytest.raises(MisconfigurationException, match=r"needs features \[N, D\], got shape \(8, 2, 8\)"):
        callback.loss_terms(method, batch, outputs, {})


def gradients(callback, method, batch):
    terms = terms_of(callback, method, batch)
    (terms["wpc"] + terms["lipschitz"]).backward()
    trained = [*method.network.body.parameters(), *method.attached.parameters()]
    return terms["wpc"].item(), [p.grad for p in trained]


def on_two():
    callback, method, batch = example()
    return gradients(callback, method, {name: x[4 * rank() : 4 * rank() + 4] for name, x in batch.items()})


def test_two_processes(run_processes):
    value, whole = gradients(*example())
    (one, grads_of_one), (two, grads_of_two) = run_processes(on_two, 2)
    assert [one, two] == [pytest.approx(value, rel=1e-5)] * 2
    torch.testing.assert_close([(a + b) / 2 for a, b in zip(grads_of_one, grads_of_two, strict=True)], whole)
