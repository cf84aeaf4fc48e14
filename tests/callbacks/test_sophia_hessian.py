import csv
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy

from leyden.callbacks import ExactResume, SophiaHessian
from leyden.callbacks.sophia_hessian import _STREAM
from leyden.core import sample_keys, uniform
from leyden.data import DataModule, TensorDictDataset
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP
from leyden.optim import Sophia, gnb_labels

BETA2 = 0.75
make_sophia = partial(Sophia, lr=0.02, betas=(0.9, BETA2), rho=0.05)


class Watch(Callback):
    """Notes the samples and the estimates at the end of every batch."""

    def __init__(self):
        self.samples, self.hessians = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.samples.append(batch["index"])
        state = trainer.optimizers[0].state
        self.hessians.append([state[p]["hessian"].clone() for p in pl_module.parameters() if p in state])


class Tokens(DataModule):
    def datasets(self):
        tokens = torch.randint(5, (8, 7), generator=torch.Generator().manual_seed(0))
        target = tokens[:, 1:].clone()
        target[:, 4:] = -100
        samples = TensorDictDataset({"input": tokens[:, :-1], "target": target})
        return {"train": samples, "val": samples}


def drawn_labels(data, step, index, logits):
    keys = sample_keys(data.seed, step, index)
    return gnb_labels(logits, uniforms=uniform(keys, *logits.shape[1:-1], stream=_STREAM))


def test_gauss_newton_bartlett_by_hand(make_trainer, make_data):
    data, method, watch = make_data(), Classification(MLP(6, 3, (5,)), optimizer=make_sophia), Watch()
    make_trainer(SophiaHessian(interval=2), watch, max_steps=2).fit(method, data)
    assert all(not h.any() for h in watch.hessians[0])
    rows = data.dataset("train").__getitems__(watch.samples[1].tolist())
    logits = method.network(rows["input"])  # of the weights after step 2, which the estimate follows
    loss = cross_entropy(logits, drawn_labels(data, 2, watch.samples[1], logits))
    grads = torch.autograd.grad(loss, list(method.network.parameters()))
    torch.testing.assert_close(watch.hessians[1], [(1 - BETA2) * 8 * grad**2 for grad in grads])
    assert all(p.grad is None for p in method.network.parameters())


def test_ignored_targets_do_not_count(make_trainer):
    data, watch = Tokens(4, seed=1), Watch()
    method = LanguageModeling(GPT(5, 6, dim=8, depth=1, num_heads=2), optimizer=make_sophia)
    make_trainer(SophiaHessian(interval=1), watch, max_steps=1).fit(method, data)
    tokens = data.dataset("train").__getitems__(watch.samples[0].tolist())["input"]
    logits = method.network(tokens)
    labels = drawn_labels(data, 1, watch.samples[0], logits)
    loss = cross_entropy(logits[:, :4].flatten(0, 1), labels[:, :4].flatten())
    grads = torch.autograd.grad(loss, list(method.network.parameters()))
    expected = [(1 - BETA2) * 4 * 4 * grad**2 for grad in grads]
    torch.testing.assert_close(watch.hessians[0], expected, rtol=1e-4, atol=1e-9)


def test_hutchinson_by_hand(make_trainer, make_data):
    data, method, watch = make_data(), Classification(MLP(6, 3, ()), optimizer=make_sophia), Watch()
    make_trainer(SophiaHessian("hutchinson", interval=1), watch, max_steps=1).fit(method, data)
    rows = data.dataset("train").__getitems__(watch.samples[0].tolist())
    weight, bias = method.network.head.weight.detach(), method.network.head.bias.detach()
    key = sample_keys(data.seed, 1, torch.tensor([_STREAM]))
    generator = torch.Generator().manual_seed(int(key))
    noise = tuple(torch.randn(p.shape, generator=generator) for p in (weight, bias))
    _, products = torch.autograd.functional.hvp(
        lambda w, b: cross_entropy(rows["input"] @ w.T + b, rows["target"]), (weight, bias), noise
    )
    expected = [(1 - BETA2) * u * product for u, product in zip(noise, products, strict=True)]
    torch.testing.assert_close(watch.hessians[0], expected, rtol=1e-4, atol=1e-7)


def test_hutchinson_through_attention(make_trainer):
    method, watch = LanguageModeling(GPT(5, 6, dim=8, depth=1, num_heads=2), optimizer=make_sophia), Watch()
    make_trainer(SophiaHessian("hutchinson", interval=1), watch, max_steps=1).fit(method, Tokens(4, seed=1))
    assert any((h < 0).any() for h in watch.hessians[0])
    assert all(h.any() for h in watch.hessians[0])


def test_it_is_clipped_as_the_trainer_clips(make_trainer, make_data):
    watch = Watch()
    method = Classification(MLP(6, 3, (5,)), optimizer=make_sophia)
    make_trainer(SophiaHessian(interval=1), watch, max_steps=1, gradient_clip_val=0.01).fit(method, make_data())
    total = sum(h.sum().item() for h in watch.hessians[0])
    assert total == pytest.approx((1 - BETA2) * 8 * 0.01**2, rel=1e-3)


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_every_interval_steps(make_trainer, make_data, estimator):
    watch = Watch()
    trainer = make_trainer(SophiaHessian(estimator, interval=3), watch, max_steps=10, accumulate_grad_batches=2)
    trainer.fit(Classification(MLP(6, 3, ()), optimizer=make_sophia), make_data())
    moved = [
        not all(map(torch.equal, before, after))
        for before, after in zip(watch.hessians[:-1], watch.hessians[1:], strict=True)
        if before
    ]
    # the state is there from batch 1 (the second) on, so the first of these compares batches 1 and 2
    assert [number + 2 for number, changed in enumerate(moved) if changed] == [5, 11, 17]


def fit(folder: Path, estimator: str, accumulate: int):
    """Trains on this and the other processes; where it ended."""
    from sklearn.datasets import load_digits

    class Digits(DataModule):
        def datasets(self):
            digits = load_digits()
            images = torch.from_numpy(digits.images[:64]).to(torch.float32).div(16.0)
            samples = TensorDictDataset({"input": images, "target": torch.from_numpy(digits.target[:64])})
            return {"train": samples, "val": samples}

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (16,)), optimizer=partial(Sophia, lr=0.01, rho=1.0))
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=DDPStrategy(process_group_backend="gloo") if world_size > 1 else "auto",
        callbacks=[ExactResume(), SophiaHessian(estimator, interval=2)],
        accumulate_grad_batches=accumulate,
        max_steps=7,
        gradient_clip_val=0.5,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, Digits(16, seed=3))
    state = trainer.optimizers[0].state
    params = list(method.network.parameters())
    return [p.detach() for p in params] + [state[p]["hessian"] for p in params]


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_many_processes_and_micro_batches_estimate_as_one(tmp_path, run_processes, estimator):
    alone = fit(tmp_path, estimator, 1)
    assert all(tensor.any() for tensor in alone)
    for result in [fit(tmp_path, estimator, 2), *run_processes(fit, 2, tmp_path, estimator, 2)]:
        torch.testing.assert_close(result, alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
@pytest.mark.parametrize("cuts", [[2], [3], [4, 13, 14]])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_cut_run_is_the_uninterrupted_one(run, make_method, assert_same_runs, estimator, cuts, accumulate):
    arguments = {
        "method": partial(make_method, optimizer=make_sophia),
        "callbacks": lambda: [SophiaHessian(estimator, interval=3)],
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": 1.0,
    }
    whole = run("whole", **arguments)
    rows = list(csv.DictReader(whole.log.splitlines()))
    rates = {int(row["step"]): float(row["train/win_rate"]) for row in rows if row["train/win_rate"]}
    assert list(rates) == list(range(2, 24, 3))
    assert all(0.0 < rate < 1.0 for rate in rates.values())
    assert_same_runs(run("cut", cuts, **arguments), whole)


def test_loss_is_scaled_in_float16(make_trainer, make_data):
    def estimate(**kwargs):
        torch.manual_seed(0)
        watch = Watch()
        method = Classification(MLP(6, 3, (5,)), optimizer=make_sophia)
        make_trainer(SophiaHessian(interval=1), watch, max_steps=1, **kwargs).fit(method, make_data())
        return watch.hessians[0]

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    half = estimate(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    torch.testing.assert_close(half, estimate(), rtol=0.1, atol=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # all gradients overflow
    assert all(not h.any() for h in estimate(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)]))


def test_another_optimizer_is_refused(make_trainer, make_data):
    with pytest.raises(MisconfigurationException, match=r"leyden.optim.Sophia as the only optimizer.*\['AdamW'\]"):
        make_trainer(SophiaHessian()).fit(Classification(MLP(6, 3, ())), make_data())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"estimator": "fisher"}, "estimator must be 'gnb' or 'hutchinson', got 'fisher'"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        SophiaHessian(**arguments)
