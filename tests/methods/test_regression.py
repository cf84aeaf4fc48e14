import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import nn
from torchmetrics import MeanSquaredError

from leyden.methods import Regression
from leyden.models import MLP

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(7, 4, generator=GENERATOR)


@pytest.fixture(params=[1, 2])
def case(request):
    """A linear model, its target ``[N, D]`` and its predictions in float64."""
    torch.manual_seed(0)
    method = Regression(MLP(4, request.param, ()))
    head = method.network.head
    prediction = X.double() @ head.weight.detach().double().T + head.bias.detach().double()
    target = prediction.float() + torch.randn(7, request.param, generator=GENERATOR)
    return method, target, prediction.numpy()


def test_loss_against_sklearn(case):
    method, target, prediction = case
    terms = method.loss_terms({"target": target}, method.compute({"input": X}))
    assert list(terms) == ["task"]
    assert terms["task"].item() == pytest.approx(mean_squared_error(target.numpy(), prediction), rel=1e-5)


def test_another_loss(case):
    method, target, prediction = case
    method = Regression(method.network, loss=nn.L1Loss())
    terms = method.loss_terms({"target": target}, method.compute({"input": X}))
    assert terms["task"].item() == pytest.approx(mean_absolute_error(target.numpy(), prediction), rel=1e-5)


def test_metrics_over_uneven_batches_against_sklearn(case):
    method, target, prediction = case
    for rows in (slice(0, 4), slice(4, 6), slice(6, 7)):
        method._evaluate("test", {"input": X[rows], "target": target[rows]})
    found = {name: value.item() for name, value in method.metrics["test"].compute().items()}
    flat = target.flatten().numpy(), prediction.flatten()
    assert found["test/loss"] == pytest.approx(mean_squared_error(*flat), rel=1e-5)
    assert found["test/mae"] == pytest.approx(mean_absolute_error(*flat), rel=1e-5)
    assert found["test/r2"] == pytest.approx(r2_score(*flat), rel=1e-4)


def test_another_shape_is_refused_since_it_would_be_broadcast(case):
    method, target, _ = case
    message = rf"output has shape \(7, {target.shape[1]}\), the target \(7,\): set the network's number of outputs"
    with pytest.raises(ValueError, match=message):
        method.loss_terms({"target": target[:, 0]}, method.compute({"input": X}))


def test_the_batch_must_have_a_target(case):
    method, _, _ = case
    with pytest.raises(ValueError, match=r"Regression needs the batch keys \['target'\]"):
        method.loss_terms({"input": X}, method.compute({"input": X}))


def test_further_metrics_are_logged_and_must_have_names_of_their_own(case):
    method, target, prediction = case
    method = Regression(method.network, metrics={"rmse": MeanSquaredError(squared=False)})
    for rows in (slice(0, 4), slice(4, 7)):
        method._evaluate("test", {"input": X[rows], "target": target[rows]})
    found = method.metrics["test"].compute()
    assert found["test/rmse"].item() == pytest.approx(mean_squared_error(target.numpy(), prediction) ** 0.5, rel=1e-5)
    with pytest.raises(ValueError, match=r"metrics has \['r2'\], which are logged anyway: choose other names"):
        Regression(method.network, metrics={"r2": MeanSquaredError()})
