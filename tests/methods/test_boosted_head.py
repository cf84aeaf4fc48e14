import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from scipy.special import expit, softmax
from sklearn.neural_network import MLPRegressor

from leyden.callbacks import Mixup
from leyden.data import BreastCancer, Diabetes, Wine
from leyden.methods import BoostedHead
from leyden.models import MLP

ITERATIONS = 10  # of L-BFGS: many more enlarge differences of rounding


@pytest.fixture
def fit(make_trainer):
    def fit(method, data, *callbacks, steps=3):
        options = {"precision": "64-true", "max_epochs": -1, "limit_val_batches": 0}
        make_trainer(*callbacks, max_steps=steps, **options).fit(method, datamodule=data)
        return data.dataset("train").tensors

    return fit


def boosted(x, residual_of, step_of, start, *, stages, subsample, learning_rate):
    """Algorithm 1 with scikit-learn's own predictions: raw scores after each stage."""
    raws = [np.tile(start, (len(x), 1))]
    for number in range(stages):
        draw = np.random.default_rng([0, number])
        rows = draw.choice(len(x), int(subsample * len(x)), replace=False)
        residual = residual_of(raws[-1])
        stage = MLPRegressor(
            hidden_layer_sizes=(2,),
            activation="tanh",
            solver="lbfgs",
            tol=0.0,
            max_iter=ITERATIONS,
            random_state=int(draw.integers(2**31)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stage.fit(x[rows], residual[rows] if residual.shape[1] > 1 else residual[rows, 0])
        prediction = stage.predict(x).reshape(residual.shape)
        raws.append(raws[-1] + learning_rate * step_of(residual, prediction) * prediction)
    return raws


def test_classes_as_by_the_algorithm(fit):
    method = BoostedHead(MLP(13, 3, ()), num_stages=3, learning_rate=0.5, max_iterations=ITERATIONS)
    train = fit(method, Wine(batch_size=32, seed=0))
    x, onehot = train["input"].double().numpy(), np.eye(3)[train["target"].numpy()]

    def step(residual, prediction):
        p = onehot - residual
        return (residual * prediction).sum() / (prediction**2 * p * (1.0 - p)).sum()

    raws = boosted(
        x, lambda raw: onehot - softmax(raw, 1), step, np.zeros(3), stages=3, subsample=0.5, learning_rate=0.5
    )
    inputs = torch.from_numpy(x)
    for stages in (3, 2, 1, 0):
        method.keep(stages)
        assert np.allclose(method.network(inputs).detach().numpy(), raws[stages], atol=1e-8)
    with pytest.raises(ValueError, match=r"num_stages must lie in \[0, 3\], got 4"):
        method.keep(4)


def test_two_classes_have_twice_the_score_as_logit(fit):
    method = BoostedHead(MLP(30, 2, ()), num_stages=2, loss="binary", max_iterations=ITERATIONS)
    train = fit(method, BreastCancer(batch_size=64, seed=0))
    x, y = train["input"].double().numpy(), 2.0 * train["target"].numpy()[:, None] - 1.0

    def step(residual, prediction):
        return (residual * prediction).sum() / (residual * (2.0 * y - residual) * prediction**2).sum()

    start = 0.5 * np.log((1.0 + y.mean()) / (1.0 - y.mean()))
    raws = boosted(
        x, lambda raw: 2.0 * y * expit(-2.0 * y * raw), step, start, stages=2, subsample=0.5, learning_rate=1.0
    )
    probability = method.network(torch.from_numpy(x)).softmax(-1)[:, 1].detach().numpy()
    assert np.allclose(probability, expit(2.0 * raws[2][:, 0]), atol=1e-6)  # the start is rounded to float32


def test_one_stage_is_a_small_network_on_centred_targets(fit):
    method = BoostedHead(MLP(10, 1, ()), num_stages=1, subsample=1.0, loss="mse", max_iterations=ITERATIONS)
    train = fit(method, Diabetes(batch_size=64, seed=0))
    x, y = train["input"].double().numpy(), train["target"].double().numpy()
    raws = boosted(x, lambda raw: y - raw, lambda *_: 1.0, y.mean(0), stages=1, subsample=1.0, learning_rate=1.0)
    inputs = torch.from_numpy(x)
    assert np.allclose(method.network(inputs).detach().numpy(), raws[1], atol=1e-8)
    method.keep(0)
    assert np.allclose(method.network(inputs).detach().numpy(), y.mean())


def test_features_stay_as_they_are(fit):
    network = MLP(13, 3, (8,))
    before = [p.detach().double() for p in network.body.parameters()]
    fit(BoostedHead(network, num_stages=1), Wine(batch_size=32, seed=0), steps=2)
    assert all(map(torch.equal, before, network.body.parameters()))
    assert network.head[0].in_features == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_stages": 0}, "num_stages must be at least 1, got 0"),
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"subsample": 1.5}, r"subsample must lie in \(0, 1\], got 1.5"),
        ({"loss": "hinge"}, "loss must be 'mse', 'binary' or 'multiclass', got 'hinge'"),
        ({"loss": "binary"}, "the network must have 2 outputs with loss='binary', got 3"),
        ({"activation": "gelu"}, "activation must be 'tanh', 'logistic' or 'relu', got 'gelu'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoostedHead(MLP(13, 3, ()), **arguments)


def test_unfitting_set_ups_are_refused(fit):
    with pytest.raises(MisconfigurationException, match="callbacks cannot change batches or add loss terms"):
        fit(BoostedHead(MLP(13, 3, ())), Wine(batch_size=32), Mixup())
    with pytest.raises(MisconfigurationException, match=r"needs the training data of a leyden\.data\.DataModule"):
        fit(BoostedHead(MLP(13, 3, ())), BoringDataModule())
