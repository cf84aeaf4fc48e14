from functools import partial
from zlib import crc32

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.callbacks import GradientDropout
from leyden.core import sample_keys
from leyden.methods import Classification
from leyden.models import MLP

T = 2.0


class Recorder(Callback):
    """Notes the batches, and the weights before and after the first step."""

    def __init__(self):
        self.batches = []
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])

    def on_train_end(self, trainer, pl_module):
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])


def fit(make_trainer, make_data, *callbacks, steps=1, accumulate=1):
    torch.manual_seed(0)
    method = Classification(MLP(6, 3, (8,)).double(), optimizer=partial(torch.optim.SGD, lr=0.1))
    recorder = Recorder()
    make_trainer(
        *callbacks,
        recorder,
        max_steps=steps,
        precision="64-true",
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
    ).fit(method, datamodule=make_data())
    return method, recorder


def by_hand(weights, batches, teacher, *, strength, state_key="GradientDropout"):
    """One step of SGD on all batches at once."""
    network = MLP(6, 3, (8,)).double()
    for p, value in zip(network.parameters(), weights, strict=True):
        p.data = value.clone()
    x, target = (torch.cat([batch[key] for batch in batches]) for key in ("input", "target"))
    logits = network(x)
    params = list(network.parameters())
    grads = torch.autograd.grad(functional.cross_entropy(logits, target), params, retain_graph=True)
    soft = (teacher(x) / T).softmax(-1).detach()
    divergence = -T * T * (soft * (logits / T).log_softmax(-1)).sum(-1).mean()
    references = torch.autograd.grad(divergence, params)
    key = sample_keys(3, 0, torch.tensor([crc32(state_key.encode())]))
    generator = torch.Generator().manual_seed(int(key))
    expected = []
    for p, g, r in zip(weights, grads, references, strict=True):
        keep = 0.5 * (1.0 + g.sign() * (g + r) / (g.abs() + r.abs() + 1e-8))
        u = torch.rand(p.shape, generator=generator)
        expected.append(p - 0.1 * torch.where(keep > u, g, (1.0 - strength) * g))
    return expected


@pytest.mark.parametrize(("strength", "accumulate"), [(1.0, 1), (0.3, 2)])
def test_a_step_equals_that_by_hand(make_trainer, make_data, strength, accumulate):
    torch.manual_seed(7)
    teacher = MLP(6, 3, (4,)).double()
    callback = GradientDropout(strength, T, teacher)
    _, recorder = fit(make_trainer, make_data, callback, accumulate=accumulate)
    assert len(recorder.batches) == accumulate
    expected = by_hand(recorder.weights[0], recorder.batches, teacher, strength=strength)
    plain = fit(make_trainer, make_data, accumulate=accumulate)[1].weights[-1]
    assert any(not torch.allclose(p, q) for p, q in zip(plain, expected, strict=True))
    for p, value in zip(recorder.weights[-1], expected, strict=True):
        torch.testing.assert_close(p, value, rtol=1e-9, atol=1e-12)


def test_no_strength_is_the_plain_gradient(make_trainer, make_data):
    plain, dropped = (fit(make_trainer, make_data, *some, steps=4)[0] for some in ([], [GradientDropout(0.0)]))
    assert all(map(torch.equal, plain.network.parameters(), dropped.network.parameters()))


def test_only_chosen_parameters_are_dropped(make_trainer, make_data):
    head = ["network.head.*"]
    plain, some = (fit(make_trainer, make_data, *which)[0] for which in ([], [GradientDropout(params=head)]))
    assert torch.equal(plain.network.body[0].weight, some.network.body[0].weight)
    # the copy of the network agrees with it in the first step, so that the gradient of its term is 0 up to rounding
    assert torch.equal(plain.network.head.weight, some.network.head.weight)
    _, both = fit(make_trainer, make_data, GradientDropout(params=head), steps=3)
    assert not all(map(torch.equal, fit(make_trainer, make_data, steps=3)[1].weights[-1], both.weights[-1]))


def test_two_draw_numbers_of_their_own(make_trainer, make_data):
    teacher = MLP(6, 3, (4,)).double()
    one = fit(make_trainer, make_data, GradientDropout(teacher=teacher))[0]
    two = fit(make_trainer, make_data, GradientDropout(teacher=teacher), GradientDropout(teacher=teacher))[0]
    assert not torch.equal(one.network.body[0].weight, two.network.body[0].weight)


def test_cut_runs_end_in_the_same_bits(run, assert_same_runs):
    def callbacks():
        return [GradientDropout()]

    arguments = {"callbacks": callbacks, "accumulate_grad_batches": 2, "batch_size": 16}
    assert_same_runs(run("whole", **arguments), run("cut", [1, 4, 7], **arguments))


class Scaled(Callback):
    """Sets up what 16-mixed has on a GPU."""

    def setup(self, trainer, pl_module, stage):
        trainer.precision_plugin.scaler = object()


def test_bad_input(make_trainer, make_data):
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got -0.1"):
        GradientDropout(-0.1)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        GradientDropout(temperature=0.0)
    with pytest.raises(ValueError, match=r"teacher must have outputs \(8, 3\) as the student, got \(8, 2\)"):
        fit(make_trainer, make_data, GradientDropout(teacher=MLP(6, 2).double()))
    with pytest.raises(MisconfigurationException, match="GradientDropout: params: 'scores' matches none"):
        fit(make_trainer, make_data, GradientDropout(params=["scores"]))
    with pytest.raises(MisconfigurationException, match="GradientDropout needs gradients within the step"):
        fit(make_trainer, make_data, Scaled(), GradientDropout())
