from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.core import MethodCallback
from leyden.data import RandomWalk
from leyden.methods import TDPrediction
from leyden.models import MLP, StreamMLP
from leyden.nn import RewardScale, RunningNorm
from leyden.optim import AdaptiveObGD, ObGD


def trainer(*callbacks, **kwargs):
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=list(callbacks),
        **kwargs,
    )


def make(optimizer=ObGD, network=None, **kwargs):
    torch.manual_seed(0)
    return TDPrediction(network or MLP(5, 1, ()), optimizer=optimizer, **kwargs)


def value_error(method, data):
    return trainer().validate(method, data, verbose=False)[0]["val/value_error"]


def test_is_td_lambda_of_the_textbook():
    data = RandomWalk(num_states=5, num_episodes=6)
    method = make(partial(ObGD, lr=0.1, lamda=0.7, kappa=0.0))
    weight, bias = (p.detach().clone().double() for p in method.network.head.parameters())
    weight = weight.squeeze(0)
    stream = data.dataset("train").tensors
    trace, bias_trace = torch.zeros(5).double(), 0.0
    columns = [stream[key].double() for key in ("input", "next_input", "reward", "terminated")]
    for x, after, reward, ended in zip(*columns, strict=True):
        value, after_value = weight @ x + bias, weight @ after + bias
        delta = reward + (0.0 if ended else 0.99 * after_value) - value
        trace, bias_trace = 0.99 * 0.7 * trace + x, 0.99 * 0.7 * bias_trace + 1.0  # of a linear value
        weight, bias = weight + 0.1 * delta * trace, bias + 0.1 * delta * bias_trace
        if ended:
            trace, bias_trace = torch.zeros(5).double(), 0.0
    trainer().fit(method, data)
    assert method.global_step == len(stream["reward"])
    torch.testing.assert_close(method.network.head.weight.squeeze(0).double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.network.head.bias.double(), bias, rtol=1e-4, atol=1e-5)


def test_lr_1_is_stable_with_the_bound_and_not_without():
    errors = []
    for optimizer in (ObGD, AdaptiveObGD, partial(ObGD, kappa=0.0)):
        method, data = make(optimizer, StreamMLP(19, hidden=(32, 32))), RandomWalk(num_episodes=4)
        trainer().fit(method, data)
        errors.append(value_error(method, data))
    assert max(errors[:2]) < 0.6  # that of zeros is 0.48
    assert errors[2] > 3.0


def test_normalised_inputs_and_scaled_rewards():
    data = RandomWalk(num_states=5, num_episodes=60)
    method = make(observation_norm=RunningNorm(5), reward_scale=RewardScale())
    trainer().fit(method, data)
    stream = data.dataset("train").tensors
    torch.testing.assert_close(method.observation_norm.mean, stream["input"].double().mean(0))
    assert method.reward_scale.stats.num_samples == len(stream["reward"])
    assert value_error(method, data) < 0.8 * data.true_values().square().mean().sqrt()  # that of zeros
    batch = next(iter(data.val_dataloader()))
    values = method.network(method.observation_norm.normalize(batch["input"])) * method.reward_scale.std().float()
    torch.testing.assert_close(method.eval().compute(batch).logits, values)


class Extra(MethodCallback):
    def loss_terms(self, method, batch, outputs, terms):
        return terms


@pytest.mark.parametrize(
    ("method", "callbacks", "match"),
    [
        (partial(make, partial(torch.optim.SGD, lr=0.1)), (), "but the optimizer is SGD"),
        (partial(make, gamma=0.9), (), "gamma is 0.9, but that of the optimizer is 0.99"),
        (partial(make, partial(ObGD, gamma=0.9), gamma=0.9), (), "gamma is 0.9, but that of the data is 0.99"),
        (make, (Extra(),), "to which callbacks cannot add loss terms"),
    ],
)
def test_what_does_not_fit(method, callbacks, match):
    with pytest.raises(MisconfigurationException, match=match):
        trainer(*callbacks).fit(method(), RandomWalk(num_states=5))


def test_bad_batches_and_arguments():
    with pytest.raises(ValueError, match=r"one transition \(batch_size 1\), got 2"):
        trainer().fit(make(), RandomWalk(num_states=5, batch_size=2))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        make(gamma=2.0)
