import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scipy.spatial.distance import jensenshannon
from scipy.special import expit
from torch import nn

from leyden.callbacks import PostHocCalibration, TestTimeMerging
from leyden.core import Network
from leyden.data import Digits, GaussianNoise
from leyden.methods import Classification
from leyden.weights import pack_weights


class Small(Network):
    """A linear layer with BatchNorm, which has running statistics and a counter."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU())
        self.feature_dim = width
        self.head = nn.Linear(width, 10)

    def features(self, x):
        return self.body(x)


def network(seed: int) -> Small:
    torch.manual_seed(seed)
    made = Small()
    norm = made.body[2]
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.2, 2.0)
    with torch.no_grad():
        made.head.weight *= 8.0  # so that the two disagree
    return made.eval()


@pytest.fixture
def expert(tmp_path):
    """Another network, and its file."""
    made = network(1)
    (tmp_path / "expert.safetensors").write_bytes(pack_weights(made.state_dict()))
    return made, str(tmp_path / "expert.safetensors")


def trainer(*callbacks) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        max_epochs=1,
        limit_test_batches=2,
        limit_predict_batches=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def data(size: int = 8) -> Digits:
    return Digits(num_train=16, batch_size=8, eval_batch_size=size, seed=0)


def predicted(callback, size: int = 8, start: Small | None = None):
    """Outputs by batch."""
    method = Classification(copy.deepcopy(start or network(0)))
    before = copy.deepcopy(method.network.state_dict())
    batches = trainer(*([callback] if callback else [])).predict(method, data(size))
    assert "compute" not in vars(method)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.network.state_dict().items())
    return [batch["output"] for batch in batches]


def inputs(size: int = 8):
    source = data(size)
    source.setup("test")
    return [batch["input"] for _, batch in zip(range(2), source.test_dataloader(), strict=False)]


def lambdas(x, expert, gamma):
    """The coefficients of the samples, in float64 and by scipy."""
    with torch.no_grad():
        p, q = (made(x).double().softmax(-1).numpy() for made in (network(0), expert))
    return expit(gamma * jensenshannon(p, q, axis=1) ** 2)


def mixed(expert, share: float) -> Small:
    made = network(0)
    other = dict(expert.state_dict())
    state = {
        name: (share * tensor.double() + (1.0 - share) * other[name].double()).to(tensor.dtype)
        for name, tensor in made.state_dict().items()
    }
    made.load_state_dict(state)
    return made


@torch.no_grad()
def test_weights_of_a_batch_against_scipy(expert):
    made, path = expert
    got = predicted(TestTimeMerging(path, gamma=3.0))
    for x, output in zip(inputs(), got, strict=True):
        share = lambdas(x, made, 3.0).mean()
        assert 0.55 < share < 0.85
        torch.testing.assert_close(output, mixed(made, share)(x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(output, mixed(made, 0.5)(x), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_weights_of_each_sample_against_scipy(expert):
    made, path = expert
    got = predicted(TestTimeMerging(path, gamma=3.0, batch=False))
    for x, output in zip(inputs(), got, strict=True):
        rows = [mixed(made, share)(x[n : n + 1]) for n, share in enumerate(lambdas(x, made, 3.0))]
        torch.testing.assert_close(output, torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_is_a_sample(expert):
    path = expert[1]
    of_batches = torch.cat(predicted(TestTimeMerging(path, gamma=3.0), size=1))
    of_samples = torch.cat(predicted(TestTimeMerging(path, gamma=3.0, batch=False), size=2))
    torch.testing.assert_close(of_batches, of_samples[: len(of_batches)], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_ends_and_static_interpolation(expert):
    made, path = expert
    x = torch.cat(inputs())
    for share, alone in ((1.0, network(0)), (0.0, made), (0.25, mixed(made, 0.25))):
        for batch in (True, False):
            callback = TestTimeMerging(path, lambda_min=share, lambda_max=share, batch=batch)
            torch.testing.assert_close(torch.cat(predicted(callback)), alone(x), rtol=1e-4, atol=1e-4)
    flat = torch.cat(predicted(TestTimeMerging(path, lambda_min=0.1, lambda_max=0.4, gamma=0.0)))
    torch.testing.assert_close(flat, alone(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_two_that_are_the_same(expert):
    made, path = expert
    output = torch.cat(predicted(TestTimeMerging(path), start=made))
    torch.testing.assert_close(output, made(torch.cat(inputs())), rtol=1e-4, atol=1e-4)


def test_metrics_of_test_and_validation(expert):
    made, path = expert
    method = Classification(network(0))
    end = {"lambda_min": 0.0, "lambda_max": 0.0}
    for command in ("test", "validate"):
        with_expert = getattr(trainer(TestTimeMerging(path, **end)), command)(method, data(), verbose=False)
        alone = getattr(trainer(), command)(Classification(made), data(), verbose=False)
        own = getattr(trainer(), command)(method, data(), verbose=False)
        assert with_expert == alone != own


class Fails(Callback):
    def on_test_batch_end(self, *args):
        raise RuntimeError("in the middle of a test")


def test_own_weights_are_back_after_an_error(expert, monkeypatch):
    path = expert[1]
    method = Classification(network(0))
    before = copy.deepcopy(method.network.state_dict())

    def check():
        assert "compute" not in vars(method)
        assert all(torch.equal(before[name], tensor) for name, tensor in method.network.state_dict().items())

    with pytest.raises(RuntimeError, match="in the middle of a test"):
        trainer(TestTimeMerging(path), Fails()).test(method, data(), verbose=False)
    check()
    calls = []

    def features(x):
        calls.append(x)
        if len(calls) == 3:  # the forward pass of the merged weights
            assert not torch.equal(method.network.head.weight, before["head.weight"])
            raise RuntimeError("in the network")
        return method.network.body(x)

    monkeypatch.setattr(method.network, "features", features)
    with pytest.raises(RuntimeError, match="in the network"):
        trainer(TestTimeMerging(path)).test(method, data(), verbose=False)
    check()


def test_a_fit_is_left_alone(expert):
    ends = []
    for callbacks in ([TestTimeMerging(expert[1])], []):
        torch.manual_seed(3)
        method = Classification(network(0).train())
        fitted = trainer(*callbacks)
        fitted.fit(method, data())
        ends.append((method.state_dict(), fitted.callback_metrics["val/loss"]))
    (ours, loss), (plain, plain_loss) = ends
    assert loss == plain_loss
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in plain.items())


@torch.no_grad()
def test_before_calibration(expert):
    made, path = expert
    end = {"lambda_min": 0.0, "lambda_max": 0.0}
    calibrations = [PostHocCalibration([GaussianNoise(0.1)], epochs=1) for _ in range(2)]
    torch.manual_seed(0)
    both = trainer(TestTimeMerging(path, **end), calibrations[0]).predict(Classification(network(0)), data())
    alone = trainer(calibrations[1]).predict(Classification(made), data())
    assert torch.equal(both[0]["output"].argmax(-1), alone[0]["output"].argmax(-1))


def test_bad_input(expert, tmp_path):
    with pytest.raises(ValueError, match="gamma must be finite"):
        TestTimeMerging(expert[1], gamma=-1.0)
    with pytest.raises(ValueError, match="lambda_min and lambda_max must be ordered"):
        TestTimeMerging(expert[1], lambda_min=0.9, lambda_max=0.1)
    with pytest.raises(FileNotFoundError, match="there is no file of weights"):
        trainer(TestTimeMerging(str(tmp_path / "none.safetensors"))).test(Classification(network(0)), data())
    with pytest.raises(ValueError, match=r"do not fit the Small: 'body.1.weight' has shape \(6, 64\) in the file"):
        trainer(TestTimeMerging(expert[1])).test(Classification(Small(7)), data())
    state = {name: tensor for name, tensor in expert[0].state_dict().items() if name != "head.bias"}
    (tmp_path / "less.safetensors").write_bytes(pack_weights(state))
    with pytest.raises(ValueError, match="the file has no 'head.bias'"):
        trainer(TestTimeMerging(str(tmp_path / "less.safetensors"))).test(Classification(network(0)), data())
