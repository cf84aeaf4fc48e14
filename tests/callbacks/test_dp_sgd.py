import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.callbacks import DPSGD, AuxiliaryZLoss
from leyden.data import Digits, PoissonBatchSampler
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.optim import edgeworth_noise_multiplier, rdp_noise_multiplier


def make_method(lr=0.1):
    torch.manual_seed(0)
    return Classification(MLP(64, 10, (6,)), optimizer=partial(torch.optim.SGD, lr=lr))


def make_dp(**kwargs):
    return DPSGD(**{"target_epsilon": 3.0, "target_delta": 1e-3, **kwargs})


def data():
    return Digits(num_train=48, batch_size=8, seed=5)


def by_hand(network, steps, *, max_grad_norm, lr=0.1):
    """SGD on clipped gradients of one sample at a time, without noise."""
    train = data()
    samples = train.dataset("train")
    sampler = PoissonBatchSampler(48, 8, seed=5)
    for _, (_, indices) in zip(range(steps), sampler, strict=False):
        total = [torch.zeros_like(p) for p in network.parameters()]
        for index in indices:
            sample = samples[index]
            loss = functional.cross_entropy(network(sample["input"].unsqueeze(0)), sample["target"].unsqueeze(0))
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            for t, g in zip(total, gradients, strict=True):
                t += g * min(1.0, max_grad_norm / (norm.item() + 1e-6))
        with torch.no_grad():
            for p, t in zip(network.parameters(), total, strict=True):
                p -= lr * t / 8


def fit(make_trainer, callback, **kwargs):
    method = make_method()
    trainer = make_trainer(callback, max_steps=3, limit_val_batches=0, **kwargs)
    trainer.fit(method, datamodule=data())
    return method, trainer


@pytest.mark.parametrize("max_grad_norm", [0.5, 100.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipped_sums_over_the_expected_size(make_trainer, max_grad_norm, accumulate):
    callback = make_dp(max_grad_norm=max_grad_norm)
    callback.noise_multiplier, callback._planned_steps = 0.0, 3  # as loaded
    method, _ = fit(make_trainer, callback, accumulate_grad_batches=accumulate)
    network = make_method().network
    by_hand(network, 3, max_grad_norm=max_grad_norm)
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_noise_has_its_size_once_per_step(make_trainer):
    weights = []
    for accumulate in (1, 2):
        callback = make_dp(max_grad_norm=0.5)
        callback.noise_multiplier, callback._planned_steps = 40.0, 3
        method, _ = fit(make_trainer, callback, accumulate_grad_batches=accumulate)
        weights.append(torch.cat([p.detach().flatten() for p in method.network.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
    start = torch.cat([p.detach().flatten() for p in make_method().network.parameters()])
    expected = 0.1 * 40.0 * 0.5 / 8 * 3**0.5  # three steps
    assert (weights[0] - start).std().item() == pytest.approx(expected, rel=0.1)


def test_noise_is_solved_for_and_logged_loss_is_plain(make_trainer):
    for accountant, solve in (("edgeworth", edgeworth_noise_multiplier), ("rdp", rdp_noise_multiplier)):
        callback = make_dp(accountant=accountant)
        _, trainer = fit(make_trainer, callback)
        assert callback.noise_multiplier == solve(3.0, 1e-3, sample_rate=8 / 48, steps=3)
        assert isinstance(trainer.datamodule.sampler, PoissonBatchSampler)
        losses = trainer.callback_metrics["train/loss"].item()
        assert 1.0 < losses < 4.0


def test_resumed_run_keeps_its_noise_and_refuses_more_steps(make_trainer):
    callback = make_dp()
    fit(make_trainer, callback)
    resumed = make_dp()
    resumed.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert resumed.noise_multiplier == callback.noise_multiplier
    with pytest.raises(MisconfigurationException, match="chose its noise for 3 steps, but the resumed fit has 4"):
        make_trainer(resumed, max_steps=4).fit(make_method(), datamodule=data())


def test_no_sample_in_a_step(make_trainer):
    callback = make_dp()
    callback.noise_multiplier, callback._planned_steps = 1.0, 10
    method = make_method()
    batches = Digits(num_train=48, batch_size=1, seed=1)
    trainer = make_trainer(callback, max_steps=10, limit_val_batches=0)
    sizes = []
    callback.on_train_batch_start = lambda trainer, pl_module, batch, batch_idx: sizes.append(len(batch["index"]))
    trainer.fit(method, datamodule=batches)
    assert 0 in sizes
    assert all(p.isfinite().all() for p in method.parameters())


def test_what_does_not_go_with_it(make_trainer):
    with pytest.raises(MisconfigurationException, match=r"network.body.0.1 is a batch norm, which mixes them"):
        make_trainer(make_dp(), max_steps=1).fit(Classification(ConvNet(1, 10, width=2)), datamodule=data())
    with pytest.raises(MisconfigurationException, match="AuxiliaryZLoss changes the step: remove one of the two"):
        make_trainer(make_dp(), AuxiliaryZLoss(), max_steps=1).fit(make_method(), datamodule=data())
    with pytest.raises(MisconfigurationException, match="set trainer.max_epochs or trainer.max_steps"):
        make_trainer(make_dp(), max_epochs=-1).fit(make_method(), datamodule=data())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"target_epsilon": 0.0}, "target_epsilon must be positive, got 0"),
        ({"target_delta": 1e-9}, r"target_delta must lie in \[1e-8, 1\), got 1e-09"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be positive, got -1"),
        ({"accountant": "prv"}, "accountant must be 'edgeworth' or 'rdp', got 'prv'"),
    ],
)
def test_bad_input(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_dp(**arguments)
