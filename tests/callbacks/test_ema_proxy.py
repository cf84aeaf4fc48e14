from functools import partial

import pytest
import torch

from leyden.callbacks import EMAProxy
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Recorder(MethodCallback):
    """Notes the term of each step, the outputs, the weights before it, and those of the proxy."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        network, proxy = (
            {k: v.clone() for k, v in m.state_dict().items()} for m in (method.network, self.proxy.teacher.module)
        )
        logits = outputs.logits.detach()
        self.steps.append((terms.get("ema_proxy"), batch["input"], logits, network, proxy))
        return terms


def fit(make_trainer, decay, *, accumulate=1, **knobs):
    torch.manual_seed(0)
    proxy = EMAProxy(decay, **knobs)
    recorder = Recorder(proxy)
    method = Classification(MLP(64, 10, (8,)), optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = make_trainer(proxy, recorder, max_epochs=2, accumulate_grad_batches=accumulate, limit_val_batches=1)
    trainer.fit(method, Digits(num_train=32, batch_size=8, seed=0))
    return recorder.steps


def test_the_proxy_follows_the_network_and_its_outputs_are_compared(make_trainer):
    steps = fit(make_trainer, 0.8, consistency_weight=0.1, warmup_steps=3)
    average = steps[0][3]
    assert len(steps) == 8
    for number, (term, x, logits, network, proxy) in enumerate(steps):
        if number:
            average = {name: 0.8 * average[name] + 0.2 * network[name] for name in network}
        for name, value in average.items():
            torch.testing.assert_close(proxy[name], value)
        if number < 3:
            assert term is None
            continue
        mlp = MLP(64, 10, (8,)).eval()
        mlp.load_state_dict(average)
        torch.testing.assert_close(term.detach(), 0.1 * (logits - mlp(x)).abs().mean().detach())
        assert term > 0.0


def test_the_average_gets_no_gradient_and_the_network_does(make_trainer):
    without = fit(make_trainer, 0.8, consistency_weight=0.0, warmup_steps=0)[-1]
    assert not without[0]
    pulled = fit(make_trainer, 0.8, consistency_weight=1.0, warmup_steps=0)[-1]
    assert not torch.equal(pulled[3]["head.weight"], without[3]["head.weight"])


def test_decay_one_keeps_the_start_and_zero_makes_the_proxy_the_network(make_trainer):
    steps = fit(make_trainer, 1.0, warmup_steps=0)
    assert all(torch.equal(steps[-1][4][name], value) for name, value in steps[0][3].items())
    assert steps[0][0] == 0.0 < steps[-1][0]
    steps = fit(make_trainer, 0.0, warmup_steps=0)
    assert all(step[0] < 1e-6 for step in steps)


def test_the_proxy_moves_once_a_step(make_trainer):
    steps = fit(make_trainer, 0.5, accumulate=2, warmup_steps=100)
    for before, after in zip(steps[:-1:2], steps[1::2], strict=True):
        assert all(torch.equal(after[4][name], value) for name, value in before[4].items())
    for name, value in steps[2][4].items():
        torch.testing.assert_close(value, 0.5 * steps[0][3][name] + 0.5 * steps[2][3][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.5}, r"decay must lie in \[0, 1\], got 1.5"),
        ({"consistency_weight": -1.0}, "consistency_weight must be at least 0, got -1.0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMAProxy(**arguments)
