from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional

from leyden.callbacks import EarlyLearningRegularization
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import CoTeaching
from leyden.models import MLP, NestedDropoutNetwork


def make(**kwargs):
    torch.manual_seed(0)
    networks = MLP(64, 10, (16,)), MLP(64, 10, (16,))
    return CoTeaching(*networks, optimizer=partial(torch.optim.SGD, lr=0.2), **kwargs)


class Recorder(MethodCallback):
    """Notes what the callbacks see, and the weights before each step."""

    def __init__(self):
        self.steps = []

    def transform_batch(self, method, batch):
        self.whole = batch
        self.weights = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        return batch

    def loss_terms(self, method, batch, outputs, terms):
        self.steps.append((method.current_epoch, self.whole, batch, outputs, terms["task"].item(), self.weights))
        return terms


def fit(method, *callbacks, max_epochs=3, batch_size=12, **kwargs):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        limit_val_batches=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, datamodule=Digits(batch_size=batch_size, num_train=24, label_noise=0.4, seed=1))
    return trainer


@pytest.mark.parametrize("split", [True, False])
def test_steps_by_hand(split):
    recorder = Recorder()
    method = make(forget_rate=0.5, gradual=2, split=split)
    trainer = fit(method, recorder)
    assert len(recorder.steps) == trainer.global_step == 3 * 2
    networks = MLP(64, 10, (16,)), MLP(64, 10, (16,))
    after = [step[5] for step in recorder.steps[1:]] + [method.state_dict()]
    for (epoch, whole, seen, outputs, task, weights), moved in zip(recorder.steps, after, strict=True):
        for network, prefix in zip(networks, ("network.", "attached.second_network."), strict=True):
            network.load_state_dict(
                {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            )
        shares = [(range(6), range(6, 12)), (range(12), range(12))][not split]
        chosen = []
        for network, share in zip(networks, shares, strict=True):
            losses = functional.cross_entropy(network(whole["input"]), whole["target"], reduction="none").tolist()
            num_kept = [len(share), len(share) // 2, len(share) // 2][epoch]  # none is left out in the first epoch
            chosen.append(sorted(share, key=lambda row, losses=losses: losses[row])[:num_kept])
        assert torch.equal(seen["index"], whole["index"][chosen[0] + chosen[1]])
        expected = []
        for network, rows in zip(networks, reversed(chosen), strict=True):  # each on the other's choice
            loss = functional.cross_entropy(network(whole["input"][rows]), whole["target"][rows])
            network.zero_grad()
            (loss / 2).backward()
            expected.append(loss.item())
        assert task == pytest.approx(sum(expected) / 2, rel=1e-5)
        assert outputs.logits.shape == (len(seen["index"]), 10)
        for network, prefix in zip(networks, ("network.", "attached.second_network."), strict=True):
            for name, p in network.named_parameters():
                torch.testing.assert_close(moved[prefix + name], p - 0.2 * p.grad, rtol=1e-4, atol=1e-6)


def test_predictions_are_the_mean_of_both():
    method = make().eval()
    x = torch.randn(4, 64)
    expected = (method.network(x) + method.attached["second_network"](x)) / 2
    torch.testing.assert_close(method(x), expected)
    torch.testing.assert_close(method.compute({"input": x}).logits, expected)


def test_ranking_leaves_modes_and_draws_alone():
    torch.manual_seed(0)
    first, second = (NestedDropoutNetwork(MLP(64, 10, (16,), dropout=0.5), sigma=4.0) for _ in range(2))
    method = CoTeaching(first, second)
    fit(method, max_epochs=1)
    assert all(module.training for module in method.network.modules())
    frozen = method.network.body.eval()
    batch = {"input": torch.rand(4, 1, 8, 8), "target": torch.arange(4)}
    state, generator = method.network.dropout.key.clone(), torch.get_rng_state()
    method.transform_batch(batch)
    assert torch.equal(state, method.network.dropout.key)
    assert torch.equal(generator, torch.get_rng_state())
    assert not frozen.training
    assert method.network.dropout.training


def test_soft_targets_and_the_last_of_an_odd_number():
    method = make(gradual=0, forget_rate=0.0)
    fit(method, max_epochs=1)
    soft = torch.rand(7, 10).softmax(-1)
    batch = {"input": torch.rand(7, 64), "target": soft, "index": torch.arange(7), "mix_lam": torch.tensor(0.5)}
    chosen = method.transform_batch(batch)
    assert sorted(chosen["index"].tolist()) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(chosen["target"], soft[chosen["index"]])
    assert chosen["mix_lam"] is batch["mix_lam"]


def test_memory_per_sample_follows_the_chosen():
    elr, recorder = EarlyLearningRegularization(), Recorder()
    fit(make(forget_rate=0.5, gradual=0), elr, recorder, max_epochs=1)
    seen = sorted(index for step in recorder.steps for index in step[2]["index"].tolist())
    assert elr.memory.written.nonzero().flatten().tolist() == seen
    assert len(seen) == 2 * 6


def test_bad_input():
    with pytest.raises(ValueError, match=r"forget_rate must lie in \[0, 1\), got 1.0"):
        make(forget_rate=1.0)
    with pytest.raises(ValueError, match="gradual must be at least 0, got -1"):
        make(gradual=-1)
    with pytest.raises(ValueError, match="second_network must be another one than network"):
        CoTeaching(network := MLP(64, 10, (16,)), network)
    with pytest.raises(ValueError, match="forget_rate 0.9 leaves none of 6 samples"):
        fit(make(forget_rate=0.9, gradual=0), max_epochs=1)
    method = make(gradual=0)
    fit(method, max_epochs=1)
    batch = {"input": torch.rand(2, 64), "target": torch.tensor([0, -1]), "labeled": torch.tensor([True, False])}
    with pytest.raises(ValueError, match="CoTeaching ranks samples by their losses: leave unlabeled ones out"):
        method.transform_batch(batch)
