from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import CauchySchwarzBottleneck
from leyden.core import Outputs, rank
from leyden.data import Diabetes, Digits
from leyden.losses import conditional_cs_divergence, normalized_cs_qmi
from leyden.methods import Classification, Regression
from leyden.models import MLP


def example():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)
    torch.manual_seed(0)
    return {"input": x, "target": y}, nn.Linear(3, 4), nn.Linear(4, 1)


def terms_of(callback, batch, features, head):
    outputs = Outputs(logits=head(features), features=features)
    return callback.loss_terms(None, batch, outputs, {"task": torch.tensor(1.0), "other": torch.tensor(2.0)})


def test_terms():
    batch, body, head = example()
    features = body(batch["input"])
    qmi = 0.5 * normalized_cs_qmi(batch["input"], features, sigma=2.0)
    divergence = conditional_cs_divergence(head(features), batch["target"], batch["input"], sigma=2.0)
    terms = terms_of(CauchySchwarzBottleneck(0.5, 2.0), batch, features, head)
    torch.testing.assert_close(terms, {"task": torch.tensor(1.0), "other": torch.tensor(2.0), "cs_qmi": qmi})
    terms = terms_of(CauchySchwarzBottleneck(0.5, 2.0, divergence=True), batch, features, head)
    torch.testing.assert_close(terms, {"task": divergence, "other": torch.tensor(2.0), "cs_qmi": qmi})


class Losses(Callback):
    def __init__(self):
        self.train = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(outputs["loss"].item())


def fit(callback, method, data):
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=6,
        callbacks=[callback, losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, datamodule=data)
    return losses.train, trainer.callback_metrics


def test_training_on_the_divergence_is_regression():
    torch.manual_seed(0)
    method = Regression(MLP(10, 1, (16,)), optimizer=partial(torch.optim.Adam, lr=0.01))
    losses, metrics = fit(CauchySchwarzBottleneck(divergence=True), method, Diabetes(batch_size=64, seed=0))
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["val/loss"] < 0.8  # the squared error, of targets with variance 1


def test_bad_input():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        CauchySchwarzBottleneck(-1.0)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        CauchySchwarzBottleneck(sigma=0.0)
    with pytest.raises(MisconfigurationException, match="divergence=True is a loss of regressions"):
        fit(CauchySchwarzBottleneck(divergence=True), Classification(MLP(64, 10)), Digits(num_train=64))


def on_two():
    batch, body, head = example()
    rows = slice(4 * rank(), 4 * rank() + 4)
    batch = {name: tensor[rows] for name, tensor in batch.items()}
    terms = terms_of(CauchySchwarzBottleneck(divergence=True), batch, body(batch["input"]), head)
    (terms["task"] + terms["cs_qmi"]).backward()
    return terms["task"].item(), [body.weight.grad, head.weight.grad]


def test_two_processes(run_processes):
    batch, body, head = example()
    terms = terms_of(CauchySchwarzBottleneck(divergence=True), batch, body(batch["input"]), head)
    (terms["task"] + terms["cs_qmi"]).backward()
    (one, grads_of_one), (two, grads_of_two) = run_processes(on_two, 2)
    assert [one, two] == [pytest.approx(terms["task"].item(), rel=1e-5)] * 2
    mean = [(a + b) / 2 for a, b in zip(grads_of_one, grads_of_two, strict=True)]
    torch.testing.assert_close(mean, [body.weight.grad, head.weight.grad])
