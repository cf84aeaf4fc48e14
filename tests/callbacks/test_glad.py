from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.func import functional_call, grad
from torch.nn import functional

from leyden.callbacks import AuxiliaryZLoss, GradientNormPenalty, SigmaReparametrization
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet, ViT


def fit(make_trainer, *callbacks, network=None, **kwargs):
    torch.manual_seed(0)
    network = network or MLP(64, 10, (6,), activation=nn.Tanh)
    method = Classification(network, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer(*callbacks, max_steps=3, limit_val_batches=0, **{"precision": "64-true", **kwargs})
    trainer.fit(method, datamodule=Digits(num_train=40, batch_size=8, seed=1))
    return method


class Batches(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((batch["input"], batch["target"]))


def by_hand(gradient_of, batches, *, accumulate=1):
    """SGD whose gradient is ``gradient_of(grad L, w)``, the mean over the micro-batches of a step."""
    torch.manual_seed(0)
    network = MLP(64, 10, (6,), activation=nn.Tanh).double()
    w = {name: p.detach().clone() for name, p in network.named_parameters()}
    for start in range(0, len(batches), accumulate):
        steps = []
        for x, y in batches[start : start + accumulate]:
            loss = grad(lambda w, x=x, y=y: functional.cross_entropy(functional_call(network, w, (x,)), y))
            steps.append(gradient_of(loss, w))
        w = {name: p - 0.1 * sum(step[name] for step in steps) / accumulate for name, p in w.items()}
    return w


def unit(gradient):
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
    return {name: g / norm for name, g in gradient.items()}


def exact(gradient, w):
    here = gradient(w)
    direction = unit(here)
    hessian_times_unit = grad(lambda w: sum((g * direction[name]).sum() for name, g in gradient(w).items()))(w)
    return {name: here[name] + 0.3 * hessian_times_unit[name] for name in w}


def two_pass(gradient, w):
    here = gradient(w)
    there = gradient({name: w[name] + 0.2 * direction for name, direction in unit(here).items()})
    return {name: (1.0 - 1.5) * here[name] + 1.5 * there[name] for name in w}  # m = 0.3 / 0.2


@pytest.mark.parametrize(("mode", "expected"), [("exact", exact), ("two_pass", two_pass)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_the_formula(make_trainer, mode, expected, accumulate):
    batches = Batches()
    penalty = GradientNormPenalty(0.3, mode=mode, radius=0.2)
    method = fit(make_trainer, penalty, batches, accumulate_grad_batches=accumulate)
    assert len(batches.seen) == 3 * accumulate
    weights = by_hand(expected, batches.seen, accumulate=accumulate)
    for name, p in method.network.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-7, atol=1e-9)


def test_attention_is_as_before_after_a_fit_with_two(make_trainer):
    class Kernels(Callback):
        seen: list[bool] = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.seen.append(torch.backends.cuda.flash_sdp_enabled())

    kernels = Kernels()
    assert torch.backends.cuda.flash_sdp_enabled()
    fit(make_trainer, GradientNormPenalty(0.1, mode="exact"), GradientNormPenalty(0.2, mode="exact"), kernels)
    assert kernels.seen == [False] * 3
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_penalty_of_no_weight_changes_nothing(make_trainer):
    plain, penalized = fit(make_trainer), fit(make_trainer, GradientNormPenalty(0.0))
    assert all(map(torch.equal, plain.parameters(), penalized.parameters()))


def test_only_chosen_parameters_are_in_the_norm(make_trainer):
    whole = fit(make_trainer, GradientNormPenalty())
    both = fit(make_trainer, GradientNormPenalty(params=["network.body.*", "network.head.*"]))
    head = fit(make_trainer, GradientNormPenalty(params=["network.head.*"]))
    assert all(map(torch.equal, whole.parameters(), both.parameters()))
    assert not torch.equal(whole.network.head.weight, head.network.head.weight)


def test_it_is_the_methods_own_loss(make_trainer):
    first = fit(make_trainer, AuxiliaryZLoss(1.0), GradientNormPenalty())
    last = fit(make_trainer, GradientNormPenalty(), AuxiliaryZLoss(1.0))
    for one, other in zip(first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_attention_and_batch_norm(make_trainer, precision):
    kernels = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    for network in (ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2), ConvNet(1, 10, width=2)):
        for mode in ("exact", "two_pass"):
            method = fit(make_trainer, GradientNormPenalty(mode=mode), network=network, precision=precision)
            assert all(p.isfinite().all() for p in method.parameters())
    assert kernels == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    assert all(kernels)


def test_second_pass_leaves_running_statistics(make_trainer):
    class Still(GradientNormPenalty):
        def loss_terms(self, method, batch, outputs, terms):
            before = {name: buffer.clone() for name, buffer in method.named_buffers()}
            terms = super().loss_terms(method, batch, outputs, terms)
            assert before
            assert all(torch.equal(buffer, before[name]) for name, buffer in method.named_buffers())
            return terms

    fit(make_trainer, Still(mode="two_pass"), network=ConvNet(1, 10, width=2))


class Breaks(Callback):
    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        raise RuntimeError("here")


def test_kernels_come_back_after_an_error(make_trainer):
    with pytest.raises(RuntimeError, match="here"):
        fit(make_trainer, GradientNormPenalty(), Breaks())
    assert torch.backends.cuda.flash_sdp_enabled()


class Scaled(Callback):
    """Sets up what 16-mixed has on a GPU."""

    def setup(self, trainer, pl_module, stage):
        trainer.precision_plugin.scaler = object()


def test_bad_input(make_trainer):
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        GradientNormPenalty(-1.0)
    with pytest.raises(ValueError, match="mode must be 'exact' or 'two_pass', got 'both'"):
        GradientNormPenalty(mode="both")
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        GradientNormPenalty(radius=0.0)
    with pytest.raises(MisconfigurationException, match="matches none of the trained parameters network.body.0.weight"):
        fit(make_trainer, GradientNormPenalty(params=["body.*"]))
    with pytest.raises(MisconfigurationException, match="body.0 is parametrized: set mode to exact"):
        fit(make_trainer, SigmaReparametrization(), GradientNormPenalty(mode="two_pass"))
    with pytest.raises(MisconfigurationException, match="set trainer.precision to bf16-mixed or 32-true"):
        fit(make_trainer, Scaled(), GradientNormPenalty())


def refusal_of_shards():
    method = Classification(MLP(64, 10, (6,)))
    shard = distribute_tensor(method.network.head.weight.detach(), init_device_mesh("cpu", (1,)))
    method.network.head.weight = nn.Parameter(shard)
    with pytest.raises(MisconfigurationException) as caught:
        GradientNormPenalty().on_fit_start(Trainer(accelerator="cpu", logger=False), method)
    return str(caught.value)


def test_shards_are_refused(run_processes):
    (message,) = run_processes(refusal_of_shards, 1)
    assert "these are sharded: train on one device or with DDP" in message
