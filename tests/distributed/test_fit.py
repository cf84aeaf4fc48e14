"""A fit is the same on one process and on many: samples, losses, weights, memory, metrics."""

import functools
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.tensor import DTensor

from leyden.callbacks import EMA, ExactResume, LastCheckpoint
from leyden.core import MethodCallback, SampleMemory
from leyden.data.dataset import TensorDictDataset
from leyden.data.module import DataModule
from leyden.data.text import TextDataModule
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP
from leyden.plugins import AtomicCheckpointIO, FSDP2Strategy

NUM_TRAIN, BATCH, NUM_EVAL = 88, 16, 37  # 5 steps in an epoch, 8 samples left over; 37 is not divisible by 2 or 4
STEPS = 12  # into the third epoch
CUT = 7  # in the middle of the second epoch
CUT_AGAIN = 9


class TinyDigits(DataModule):
    num_classes = 10

    def datasets(self):
        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.float32).div(16.0)
        target = torch.from_numpy(digits.target)
        rows = {"train": slice(0, NUM_TRAIN), "val": slice(100, 100 + NUM_EVAL), "test": slice(200, 200 + NUM_EVAL)}
        return {split: TensorDictDataset({"input": images[s], "target": target[s]}) for split, s in rows.items()}


class Recorder(MethodCallback):
    """Notes the samples and the loss of every micro-batch, the mean of every epoch, and the samples of the test."""

    def __init__(self):
        self.seen = []
        self.means = {}
        self.tested = []

    def loss_terms(self, method, batch, outputs, terms):
        self.seen.append((method.global_step, batch["index"].tolist(), sum(terms.values()).item()))
        return terms

    def on_train_epoch_start(self, trainer, pl_module):
        if "train/loss_epoch" in trainer.callback_metrics:
            self.means[trainer.current_epoch - 1] = trainer.callback_metrics["train/loss_epoch"].item()

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.tested += batch["index"].tolist()


class StoppedError(Exception):
    pass


class Stop(Callback):
    """Ends the fit as a crash does, just after a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise StoppedError


class RememberedOutputs(MethodCallback):
    """Pulls the outputs towards those of the epoch before."""

    def build(self, method):
        self.memory = SampleMemory(method.datamodule.num_samples, 10)

    def loss_terms(self, method, batch, outputs, terms):
        remembered, written = self.memory.read(batch["index"])
        pull = ((outputs.logits - remembered).square().mean(-1) * written).mean()
        self.memory.write(batch["index"], outputs.logits)
        return terms | {"remembered": pull}

    def state_dict(self):
        return self.memory.state_dict()

    def load_state_dict(self, state):
        self.memory.load_state_dict(state)


class Projection(MethodCallback):
    """Has a trainable part of its own."""

    def build(self, method):
        method.attach("projection", nn.Linear(32, 10), lr_scale=0.5)

    def loss_terms(self, method, batch, outputs, terms):
        logits = method.attached["projection"](outputs.features)
        return terms | {"projection": nn.functional.cross_entropy(logits, batch["target"])}


PARTS = {"ema": functools.partial(EMA, 0.8), "memory": RememberedOutputs, "attached": Projection}


def fit(
    folder: Path,
    *parts: str,
    strategy: str = "ddp",
    accumulate: int = 1,
    steps: int = STEPS,
    stop: int | None = None,
    resume: bool = False,
):
    """Trains and tests on this and the other processes; what this process saw and where it ended."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    seed_everything(0, verbose=False)
    method = Classification(
        MLP(64, 10, hidden=(32,)), optimizer=functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    )
    recorder = Recorder()
    stops = [Stop(stop)] if stop else []
    strategies = {
        "ddp": lambda: DDPStrategy(process_group_backend="gloo") if world_size > 1 else "auto",
        "fsdp2": FSDP2Strategy,
        "fsdp2_whole": functools.partial(FSDP2Strategy, shard_blocks=False),
    }
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategies[strategy](),
        plugins=[AtomicCheckpointIO()],
        callbacks=[ExactResume(), *(PARTS[part]() for part in parts), recorder, LastCheckpoint(stop or CUT), *stops],
        accumulate_grad_batches=accumulate,
        gradient_clip_val=3.0,
        max_steps=steps,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    datamodule = TinyDigits(BATCH, eval_batch_size=10, seed=3)
    try:
        trainer.fit(method, datamodule, ckpt_path=str(folder / "checkpoints/last.ckpt") if resume else None)
    except StoppedError:
        return {"seen": recorder.seen}
    tested = {name: float(value) for name, value in trainer.test(method, datamodule, verbose=False)[0].items()}
    return {
        "seen": recorder.seen,
        "weights": {name: whole(tensor) for name, tensor in method.state_dict().items()},
        "means": recorder.means,
        "tested": tested,
        "test_samples": recorder.tested,
    }


def fit_gpt(sharded: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and last weights of six steps of a GPT with tied weights; after three, the average is evaluated."""
    seed_everything(0, verbose=False)
    method = LanguageModeling(
        GPT(256, 16, dim=12, depth=2, num_heads=2), optimizer=functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    )
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=2 if sharded else 1,
        strategy=FSDP2Strategy() if sharded else "auto",
        callbacks=[recorder, EMA(0.8)],
        max_steps=6,
        val_check_interval=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    text = b"the quick brown fox jumps over the lazy dog; " * 60
    trainer.fit(method, TextDataModule(text, context=16, batch_size=16))
    return [loss for *_, loss in recorder.seen], {name: whole(tensor) for name, tensor in method.state_dict().items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def samples_by_step(results: list[dict]) -> dict[int, list[int]]:
    """Samples of each optimizer step, in the order of the epoch: micro-batch after micro-batch, in each by rank."""
    steps: dict[int, list[int]] = {}
    for micro_batches in zip(*(result["seen"] for result in results), strict=True):
        for step, samples, _ in micro_batches:
            steps.setdefault(step, []).extend(samples)
    return steps


def losses_by_step(results: list[dict]) -> list[float]:
    losses: dict[int, list[float]] = {}
    for result in results:
        for step, _, loss in result["seen"]:
            losses.setdefault(step, []).append(loss)
    return [sum(values) / len(values) for values in losses.values()]


def assert_same(results: list[dict], reference: dict) -> None:
    assert samples_by_step(results) == samples_by_step([reference])
    assert losses_by_step(results) == pytest.approx(losses_by_step([reference]), rel=0, abs=1e-6)
    for result in results:
        assert_same_end(result, reference)


def assert_same_end(result: dict, reference: dict) -> None:
    torch.testing.assert_close(result["weights"], reference["weights"], rtol=0, atol=1e-6)
    assert result["means"] == pytest.approx({e: reference["means"][e] for e in result["means"]}, rel=0, abs=1e-6)
    assert max(result["means"]) == max(reference["means"])
    assert result["tested"] == pytest.approx(reference["tested"], rel=0, abs=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """``alone(*parts)`` is the fit on one process, made once."""
    return functools.cache(lambda *parts: fit(tmp_path_factory.mktemp("alone"), *parts))


def test_one_process_by_hand(alone):
    reference = alone()
    assert list(samples_by_step([reference])) == list(range(STEPS))
    for epoch in (0, 1):
        samples = [i for step in range(5 * epoch, 5 * epoch + 5) for i in samples_by_step([reference])[step]]
        assert len(set(samples)) == len(samples) == 80
    losses = losses_by_step([reference])
    assert reference["means"] == pytest.approx({0: sum(losses[:5]) / 5, 1: sum(losses[5:10]) / 5})
    assert reference["tested"]["test/accuracy"] > 0.5


@pytest.mark.parametrize(
    ("parts", "world_size", "accumulate"),
    [
        ((), 2, 1),
        ((), 4, 1),
        ((), 1, 2),
        ((), 2, 2),
        (("ema",), 2, 1),
        (("memory",), 2, 1),
        (("attached",), 2, 1),
        (("ema", "memory", "attached"), 4, 2),
        (("ema", "memory"), 4, 2),
    ],
)
def test_same_on_many_processes(run_processes, alone, tmp_path, parts, world_size, accumulate):
    results = run_processes(fit, world_size, tmp_path, *parts, accumulate=accumulate)
    assert_same(results, alone(*parts))


def test_same_gpt_with_shared_parameters(run_processes):
    losses, weights = fit_gpt(sharded=False)
    results = run_processes(fit_gpt, 2, sharded=True)
    both = [sum(pair) / 2 for pair in zip(*(losses_of_one for losses_of_one, _ in results), strict=True)]
    assert both == pytest.approx(losses, rel=0, abs=1e-6)
    for _, weights_of_one in results:
        torch.testing.assert_close(weights_of_one, weights, rtol=0, atol=1e-6)


def test_parts_change_the_fit(alone):
    ends = [alone(*parts)["tested"]["test/loss"] for parts in ((), ("ema",), ("memory",), ("attached",))]
    assert len(set(ends)) == 4


@pytest.mark.parametrize(
    ("strategy", "parts", "world_size", "accumulate"),
    [
        ("fsdp2", ("ema", "memory", "attached"), 2, 1),
        ("fsdp2", ("ema",), 4, 2),
        ("fsdp2", (), 1, 1),
        ("fsdp2_whole", ("ema", "attached"), 2, 2),
    ],
)
def test_same_with_shared_parameters(run_processes, alone, tmp_path, strategy, parts, world_size, accumulate):
    results = run_processes(fit, world_size, tmp_path, *parts, strategy=strategy, accumulate=accumulate)
    assert_same(results, alone(*parts))


@pytest.mark.parametrize(
    "sessions",  # strategy, number of processes, micro-batches in a step
    [
        ("ddp 2 1", "ddp 1 2", "ddp 4 1"),
        ("ddp 1 1", "ddp 2 1"),
        ("fsdp2 2 1", "fsdp2 1 2", "fsdp2 4 1"),
        ("fsdp2 2 2", "ddp 1 1", "fsdp2_whole 2 1"),
        ("ddp 2 1", "fsdp2 2 1"),
    ],
    ids=" - ".join,
)
def test_resume_on_another_number_of_processes(run_processes, alone, tmp_path, sessions):
    parts = ("ema", "memory", "attached")
    steps = samples_by_step([alone(*parts)])
    cuts = [0, CUT, CUT_AGAIN][: len(sessions)]
    for session, begin, end in zip(sessions, cuts, [*cuts[1:], None], strict=True):
        strategy, world_size, accumulate = session.split()
        options = {"strategy": strategy, "accumulate": int(accumulate), "stop": end, "resume": begin > 0}
        results = run_processes(fit, int(world_size), tmp_path, *parts, **options)
        assert samples_by_step(results) == {step: steps[step] for step in range(begin, end or STEPS)}
    for result in results:
        assert_same_end(result, alone(*parts))
    assert len(list((tmp_path / "checkpoints").glob("*.shards"))) == (2 if "fsdp2" in sessions[-1] else 0)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_test_sample_counts_once(run_processes, alone, tmp_path, world_size):
    results = run_processes(fit, world_size, tmp_path, steps=1)
    assert sorted(i for result in results for i in result["test_samples"]) == list(range(NUM_EVAL))
    for result in results:
        correct = result["tested"]["test/accuracy"] * NUM_EVAL
        assert correct == pytest.approx(round(correct), abs=1e-5)
