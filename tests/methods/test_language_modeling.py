from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from leyden.methods import LanguageModeling
from leyden.models import GPT

VOCABULARY = 7
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(VOCABULARY, (5, 6), generator=GENERATOR)
TARGET = torch.randint(VOCABULARY, (5, 6), generator=GENERATOR)
TARGET[0, 3:] = TARGET[3, :2] = -100


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GPT(VOCABULARY, 6, dim=8, depth=1, num_heads=2)


def log_probabilities(network):
    """Log softmax in numpy's float64, ``[5, 6, V]``."""
    logits = network(TOKENS).detach().double().numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected_loss(network, rows=slice(None)):
    counted = (TARGET[rows] != -100).numpy()
    probabilities = np.exp(log_probabilities(network)[rows][counted])
    return log_loss(TARGET[rows].numpy()[counted], probabilities, labels=range(VOCABULARY))


def task(method):
    batch = {"input": TOKENS, "target": TARGET}
    terms = method.loss_terms(batch, method.compute(batch))
    assert list(terms) == ["task"]
    return terms["task"].item()


def test_loss_against_sklearn(network):
    assert task(LanguageModeling(network)) == pytest.approx(expected_loss(network), rel=1e-5)


def test_label_smoothing_by_the_definition(network):
    counted = (TARGET != -100).numpy()
    logs = log_probabilities(network)[counted]
    true = np.take_along_axis(logs, TARGET.numpy()[counted][:, None], 1)[:, 0]
    expected = -(0.8 * true + 0.2 * logs.mean(1)).mean()
    assert task(LanguageModeling(network, label_smoothing=0.2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_metrics_weigh_tokens_alike(network, label_smoothing):
    method = LanguageModeling(network, label_smoothing=label_smoothing)
    for rows in (slice(0, 2), slice(2, 5)):
        method._evaluate("val", {"input": TOKENS[rows], "target": TARGET[rows]})
    found = {name: value.item() for name, value in method.metrics["val"].compute().items()}
    nats = expected_loss(network)  # smoothing is no part of the metrics
    assert found["val/bits_per_byte"] == pytest.approx(nats / np.log(2), rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)


def test_bytes_per_token_come_from_the_data(network):
    method = LanguageModeling(network)
    method._trainer = SimpleNamespace(datamodule=SimpleNamespace(bytes_per_token=4.0))
    method._evaluate("val", {"input": TOKENS, "target": TARGET})
    found = method.metrics["val"].compute()["val/bits_per_byte"].item()
    assert found == pytest.approx(expected_loss(network) / np.log(2) / 4, rel=1e-5)


def test_the_loss_weighs_tokens_alike(network):
    method = LanguageModeling(network)
    for rows in (slice(0, 2), slice(2, 5)):
        method._evaluate("val", {"input": TOKENS[rows], "target": TARGET[rows]})
    assert method.metrics["val"].compute()["val/loss"].item() == pytest.approx(expected_loss(network), rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_label_smoothing_out_of_range(network, label_smoothing):
    with pytest.raises(ValueError, match=rf"label_smoothing must lie in \[0, 1\), got {label_smoothing}"):
        LanguageModeling(network, label_smoothing=label_smoothing)


def test_the_batch_must_have_a_target(network):
    method = LanguageModeling(network)
    with pytest.raises(ValueError, match=r"LanguageModeling needs the batch keys \['target'\]"):
        method.loss_terms({"input": TOKENS}, method.compute({"input": TOKENS}))
