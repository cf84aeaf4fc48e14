import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import NoiseFiT
from leyden.core import MethodCallback, Network, normal, sample_keys
from leyden.data import Digits, PydocTopics
from leyden.losses import noisefit_penalty
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT
from leyden.nn import adaptive_noise


class Blocks(Network):
    """Four residual blocks; the first two give tuples."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.blocks = nn.ModuleList([Pair(), Pair(), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.feature_dim = 8
        self.head = nn.Linear(8, 10)

    def features(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            y = block(x)
            x = x + torch.tanh(y[0] if isinstance(y, tuple) else y)
        return x


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x), "more"


class Recorder(MethodCallback):
    """Notes weights, batch and terms of each step."""

    def __init__(self):
        self.steps = []

    def transform_batch(self, method, batch):
        self.network = copy.deepcopy(method.network)
        return batch

    def loss_terms(self, method, batch, outputs, terms):
        self.steps.append((method.global_step, self.network, batch, {k: v.item() for k, v in terms.items()}))
        return terms


def fit(*callbacks, network=None, method=None, max_epochs=1):
    torch.manual_seed(0)
    method = method or Classification(network or Blocks())
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        limit_val_batches=1,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=48, seed=1))
    return method


def forward(network, x, noise=None):
    """The network, block by block, with noise behind the blocks that ``noise`` has a function for."""
    x = network.stem(x.flatten(1))
    for number, block in enumerate(network.blocks):
        y = block.linear(x) if isinstance(block, Pair) else block(x)
        if noise and number in noise:
            y = noise[number](y)
        x = x + torch.tanh(y)
    return network.head(x)


def test_terms_of_a_fit(monkeypatch):
    monkeypatch.setattr("leyden.callbacks.noisefit.crc32", lambda name: 5)
    noisefit, recorder = NoiseFiT(std=0.4, layers=2, alpha=0.7, consistency=0.3), Recorder()
    fit(noisefit, recorder)
    assert len(recorder.steps) == 3
    assert len(noisefit.selected) == 2
    for step, network, batch, terms in recorder.steps:
        x, keys = batch["input"], sample_keys(1 + 5, step, batch["index"])

        def noise(number, keys=keys):  # of the first pass the streams 0 to 3, of the second 4 to 7
            return {
                block: lambda y, stream=4 * number + block: adaptive_noise(
                    y, base_std=0.4 * y.std(), normal=normal(keys, 8, stream=stream)
                )
                for block in noisefit.selected
            }

        with torch.no_grad():
            clean, first, second = forward(network, x), forward(network, x, noise(0)), forward(network, x, noise(1))
        task = nn.functional.cross_entropy(clean, batch["target"]).item()
        penalty = noisefit_penalty(clean, first, second, alpha=0.7, consistency=0.3).item()
        assert terms["task"] == pytest.approx(0.7 * task, rel=1e-5)
        assert terms["noisefit"] == pytest.approx(penalty, rel=1e-4)
        assert terms["noisefit"] > 1e-5


@pytest.mark.parametrize("select", ["largest", "smallest"])
def test_blocks_are_chosen_by_the_ratio_of_signal_to_noise(select):
    noisefit, recorder = NoiseFiT(layers=2, select=select), Recorder()
    fit(noisefit, recorder)
    _, network, batch, _ = recorder.steps[0]
    states = {}
    spy = {block: lambda y, block=block: states.setdefault(block, y) for block in range(4)}
    torch.manual_seed(0)
    with torch.no_grad():
        forward(network, batch["input"], spy)
        ratios = []
        for block in range(4):
            h = states[block]
            draws = [(adaptive_noise(h, base_std=0.1 * h.std()) - h).abs().mean() for _ in range(200)]
            ratios.append(h.abs().mean() / (torch.stack(draws).mean() + 1e-6))
    order = torch.stack(ratios).argsort(descending=select == "largest")
    assert noisefit.selected == sorted(order[:2].tolist())


def test_without_noise_there_is_no_divergence():
    recorder = Recorder()
    fit(NoiseFiT(std=0.0), recorder)
    for _, network, batch, terms in recorder.steps:
        assert terms["noisefit"] == pytest.approx(0.0, abs=1e-6)
        task = nn.functional.cross_entropy(network(batch["input"]), batch["target"]).item()
        assert terms["task"] == pytest.approx(0.5 * task, rel=1e-5)


def test_the_network_is_left_as_it_was():
    noisefit = NoiseFiT(std=1.0)
    method = fit(noisefit)
    assert all(len(block._forward_hooks) == 1 for block in method.network.blocks)  # that of the taps
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(method.network(x), forward(method.network, x))
    # another fit chooses anew
    noisefit.selected = [9]
    fit(noisefit, method=method)
    assert noisefit.selected != [9]


def test_tokens_without_loss_are_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "leyden.callbacks.noisefit.noisefit_penalty",
        lambda *logits, mask, **knobs: seen.append(mask) or noisefit_penalty(*logits, mask=mask, **knobs),
    )

    class Masked(PydocTopics):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch | {"target": batch["target"].masked_fill(batch["target"] == 32, -100)}

    method = LanguageModeling(GPT(256, 8, dim=8, depth=2, num_heads=2))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        callbacks=[NoiseFiT(layers=1)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=Masked(context=8, batch_size=4))
    assert seen[0].shape == (4, 8)
    assert not seen[0].all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"std": -0.1}, "std must be at least 0, got -0.1"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"select": "both"}, "select must be 'largest' or 'smallest', got 'both'"),
        ({"alpha": 1.1}, r"alpha must lie in \[0, 1\], got 1.1"),
        ({"consistency": -1.0}, "consistency must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        NoiseFiT(**arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"blocks": "layers"},
            r"blocks must name a ModuleList or Sequential of Blocks, which has \['blocks'\], got 'la",
        ),
        ({"layers": 5}, "layers is 5, but blocks holds 4 blocks"),
    ],
)
def test_blocks_that_there_are_not(arguments, match):
    with pytest.raises(MisconfigurationException, match=match):
        fit(NoiseFiT(**arguments))


def test_activations_that_are_computed_twice_are_refused():
    network = Blocks()
    network.gradient_checkpointing = True
    with pytest.raises(MisconfigurationException, match="switch gradient checkpointing off"):
        fit(NoiseFiT(), network=network)
