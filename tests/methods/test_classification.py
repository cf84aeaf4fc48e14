import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn
from torchmetrics.classification import MulticlassAUROC

from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
TARGET = torch.tensor([0, 2, 1, 2, 0, 0])


@pytest.fixture
def method():
    torch.manual_seed(0)
    return Classification(MLP(4, 3, ())).double()


def probabilities(method):
    """Softmax in numpy."""
    weight, bias = (p.detach().numpy() for p in (method.network.head.weight, method.network.head.bias))
    scores = np.exp(X.numpy() @ weight.T + bias)
    return scores / scores.sum(1, keepdims=True)


def task(method, **batch):
    batch = {"input": X, "target": TARGET, **batch}
    terms = method.loss_terms(batch, method.compute(batch))
    assert list(terms) == ["task"]
    return terms["task"].item()


def test_outputs(method):
    outputs = method.compute({"input": X})
    assert torch.equal(outputs.features, X)
    np.testing.assert_allclose(outputs.logits.softmax(-1).detach().numpy(), probabilities(method), rtol=1e-12)


def test_hard_targets_against_sklearn(method):
    assert task(method) == pytest.approx(log_loss(TARGET.numpy(), probabilities(method)), rel=1e-12)


def test_soft_targets_by_the_definition(method):
    soft = torch.rand(6, 3, generator=GENERATOR, dtype=torch.float64).softmax(-1)
    expected = -(soft.numpy() * np.log(probabilities(method))).sum(1).mean()
    assert task(method, target=soft) == pytest.approx(expected, rel=1e-12)


def test_one_hot_is_the_hard_target(method):
    one_hot = nn.functional.one_hot(TARGET, 3).double()
    assert task(method, target=one_hot) == pytest.approx(task(method), rel=1e-12)


def test_unlabeled_samples_are_left_out(method):
    labeled = torch.tensor([True, False, True, True, False, False])
    expected = log_loss(TARGET[labeled].numpy(), probabilities(method)[labeled.numpy()], labels=[0, 1, 2])
    found = task(method, target=TARGET.masked_fill(~labeled, -1), labeled=labeled)
    assert found == pytest.approx(expected, rel=1e-12)


HALF = torch.tensor([True, False, True, True, False, False])


@pytest.mark.parametrize(
    "batch",
    [
        {"target": torch.full((6, 3), 1 / 3, dtype=torch.float64), "labeled": HALF},
        {"target": torch.full((6,), -1), "labeled": torch.zeros(6, dtype=torch.bool)},
    ],
    ids=["soft", "none_labeled"],
)
def test_unlabeled_samples_of_other_kinds(method, batch):
    assert np.isfinite(task(method, **batch))


def test_another_loss(method):
    other = Classification(method.network, loss=nn.MultiMarginLoss())
    logits = method.compute({"input": X}).logits
    true = logits.gather(1, TARGET[:, None])
    margins = (1.0 - true + logits).clamp(min=0.0).scatter(1, TARGET[:, None], 0.0)
    assert task(other) == pytest.approx((margins.sum(1) / 3).mean().item())


def evaluate(method, batches):
    for batch in batches:
        method._evaluate("val", batch)
    return {name: value.item() for name, value in method.metrics["val"].compute().items()}


def test_metrics_against_sklearn(method):
    found = evaluate(method, [{"input": X[:4], "target": TARGET[:4]}, {"input": X[4:], "target": TARGET[4:]}])
    prediction = probabilities(method).argmax(1)
    assert found["val/accuracy"] == pytest.approx(accuracy_score(TARGET.numpy(), prediction))
    assert found["val/loss"] == pytest.approx(log_loss(TARGET.numpy(), probabilities(method)), rel=1e-6)


def test_more_metrics_against_sklearn():
    torch.manual_seed(0)
    method = Classification(MLP(4, 3, ()), metrics={"auroc": MulticlassAUROC(3)}).double()
    for stage in ("val", "test"):  # each has its own
        for rows in (slice(0, 2), slice(2, 6)):
            method._evaluate(stage, {"input": X[rows], "target": TARGET[rows]})
        expected = roc_auc_score(TARGET.numpy(), probabilities(method), multi_class="ovr")
        assert method.metrics[stage].compute()[f"{stage}/auroc"].item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"metrics has \['accuracy'\], which are logged anyway"):
        Classification(MLP(4, 3, ()), metrics={"accuracy": MulticlassAUROC(3)})


def test_accuracy_of_soft_targets(method):
    one_hot = nn.functional.one_hot(TARGET, 3).double()
    found = evaluate(method, [{"input": X, "target": one_hot}])
    assert found["val/accuracy"] == pytest.approx(accuracy_score(TARGET.numpy(), probabilities(method).argmax(1)))


def test_the_batch_must_have_a_target(method):
    with pytest.raises(ValueError, match=r"Classification needs the batch keys \['target'\]"):
        method.loss_terms({"input": X}, method.compute({"input": X}))


def test_too_few_outputs_are_refused_before_the_fit():
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match="has 9 outputs, but the data have 10 classes: set its number"):
        trainer.fit(Classification(MLP(64, 9)), datamodule=Digits())
