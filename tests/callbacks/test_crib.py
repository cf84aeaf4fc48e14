import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional

from leyden.callbacks import CRIB
from leyden.core import MethodCallback
from leyden.data import CoupledSinusoids, Digits
from leyden.methods import Classification, Regression
from leyden.models import MLP, UnifiedVariateTransformer


class Recorder(MethodCallback):
    """Notes terms, features and head of each step."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        head = copy.deepcopy(method.attached["CRIB"]) if "CRIB" in method.attached else None
        self.steps.append(({k: v.item() for k, v in terms.items()}, outputs.features.detach().clone(), head))
        return terms


def fit(*callbacks, method=None, data=None, accumulate=1, dropout=0.0):
    torch.manual_seed(0)
    network = UnifiedVariateTransformer(3, dim=8, depth=1, num_heads=2, dropout=dropout)
    method = method or Regression(network, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data or CoupledSinusoids(num_variates=3, num_steps=400, batch_size=16, seed=0))
    return method


@pytest.mark.parametrize("accumulate", [1, 2])
def test_divergence_against_torch_distributions(accumulate):
    recorder = Recorder()
    fit(CRIB(kl_weight=0.5, latent_dim=4), recorder, accumulate=accumulate)
    assert len(recorder.steps) == 4
    for terms, features, head in recorder.steps:
        with torch.no_grad():
            mean, spread = head(features).double().split(4, -1)
        approximate = Independent(Normal(mean, (functional.softplus(spread) + 1e-9).sqrt()), 1)
        standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
        expected = kl_divergence(approximate, standard).sum().item()
        assert terms["crib_kl"] == pytest.approx(0.5 * accumulate * expected, rel=1e-5)


class Identity:
    """A method whose features are the input; notes what it gets."""

    datamodule, global_step = None, 7

    def __init__(self):
        self.inputs = []

    def compute(self, batch):
        self.inputs.append(batch["input"])
        return SimpleNamespace(features=batch["input"])


def noise_of(batch, **arguments):
    """The noise that is added to a batch, and the terms."""
    method, crib = Identity(), CRIB(kl_weight=0.0, **arguments)
    crib._state_key = "CRIB"  # which seeds the noise; `setup` would set it
    terms = crib.loss_terms(method, batch, SimpleNamespace(features=batch["input"]), {})
    return method.inputs[0] - batch["input"], terms


def test_noise_has_the_moments_of_the_input():
    batch = {"input": 2.0 + 5.0 * torch.rand(512, 50), "index": torch.arange(512)}  # mean 4.5, variance 25 / 12
    noise, terms = noise_of(batch, noise=0.1, consistency_weight=3.0)
    assert noise.mean().item() == pytest.approx(0.45, abs=0.005)
    assert noise.std().item() == pytest.approx(0.1 * (25 / 12) ** 0.5, rel=0.01)
    assert terms.keys() == {"crib_consistency"}
    # the mean of squares is the squared mean and the variance
    assert terms["crib_consistency"].item() == pytest.approx(3.0 * (0.45**2 + 0.01 * 25 / 12), rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_terms_are_of_float32_at_least(dtype, expected):
    _, terms = noise_of({"input": torch.rand(4, 3, dtype=dtype), "index": torch.arange(4)})
    assert terms["crib_consistency"].dtype == expected


def test_noise_is_that_of_the_sample():
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 1)  # any rows in pairs have mean 0 and deviation 1
    noise, _ = noise_of({"input": x, "index": torch.arange(8)})
    again, _ = noise_of({"input": x[:4], "index": torch.tensor([5, 1, 7, 2])})
    torch.testing.assert_close(again, noise[[5, 1, 7, 2]])
    assert len(noise.unique(dim=0)) == 8


def test_consistency_has_gradients_through_both_passes():
    method = Regression(MLP(4, 2, (8,)))
    batch = {"input": torch.randn(6, 4), "index": torch.arange(6)}
    outputs = method.compute(batch)
    crib = CRIB(kl_weight=0.0, noise=0.5)
    through_both = crib.loss_terms(method, batch, outputs, {})["crib_consistency"]
    gradients = torch.autograd.grad(through_both, list(method.network.body.parameters()), retain_graph=True)
    outputs.features = outputs.features.detach()
    through_one = crib.loss_terms(method, batch, outputs, {})["crib_consistency"]
    halves = torch.autograd.grad(through_one, list(method.network.body.parameters()))
    assert through_one.item() == through_both.item()
    assert not torch.allclose(gradients[0], halves[0])


def test_without_noise_and_dropout_the_consistency_is_zero():
    for dropout in (0.0, 0.5):
        recorder = Recorder()
        fit(CRIB(kl_weight=0.0, noise=0.0), recorder, dropout=dropout)
        assert all((terms["crib_consistency"] > 0.0) == (dropout > 0.0) for terms, *_ in recorder.steps)


def test_weights_zero_are_the_baseline_bit_for_bit():
    plain = fit(dropout=0.1).state_dict()
    weightless = fit(CRIB(kl_weight=0.0, consistency_weight=0.0), dropout=0.1).state_dict()
    full = fit(CRIB(kl_weight=1e-3), dropout=0.1).state_dict()
    assert plain.keys() == weightless.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, weightless[name])
    assert not torch.equal(plain["network.positions"], full["network.positions"])


def test_classification_of_images():
    torch.manual_seed(0)
    recorder = Recorder()
    method = Classification(MLP(64, 10, (8,)))
    fit(CRIB(), recorder, method=method, data=Digits(num_train=64, batch_size=16, seed=0))
    assert all(terms.keys() == {"task", "crib_consistency", "crib_kl"} for terms, *_ in recorder.steps)


def test_bad_input_is_refused():
    for name in ("kl_weight", "consistency_weight", "noise"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            CRIB(**{name: -1.0})
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        CRIB(latent_dim=0)
    with pytest.raises(ValueError, match=r"CRIB needs the batch keys \['index'\]"):
        noise_of({"input": torch.zeros(1)})
    with pytest.raises(ValueError, match="CRIB adds noise to the input, which must hold real numbers, got torch.int64"):
        noise_of({"input": torch.zeros(2, 3, dtype=torch.int64), "index": torch.arange(2)})
