"""Time of a training step: Leyden with 0, 1, 4 and 5 callbacks, plain Lightning, and a hand-written loop.

All variants train the same network on the same batches with the same AdamW, in one process, in turn. Printed are
medians over the rounds of the ratio to the hand-written loop of the same round.

    python benchmarks/step_overhead.py [--rounds 15] [--only mlp cnn gpt]
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from leyden.callbacks import EMA, ExactResume, LastCheckpoint, ProgressBar, RunRecord
from leyden.core import Batch, Method, MethodCallback, Network, Outputs, Terms
from leyden.data import DataModule, GlobalBatchSampler, ResumableLoader
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP, ConvNet

optimizer = partial(torch.optim.AdamW, lr=1e-4)


class Tensors(Dataset):
    """Inputs and targets in memory."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: list[int]) -> Batch:
        picked = torch.tensor(indices)
        return {"input": self.inputs[picked], "target": self.targets[picked]}


class Data(DataModule):
    """The batches that every variant trains on."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        super().__init__(batch_size)
        self.train_set = dataset

    def datasets(self) -> dict[str, Dataset]:
        return {"train": self.train_set}


class WeightPenalty(MethodCallback):
    """A regularizer as users write them."""

    def loss_terms(self, method: Method, batch: Batch, outputs: Outputs, terms: Terms) -> Terms:
        return terms | {"penalty": 1e-4 * outputs.logits.square().mean()}


class PlainModule(L.LightningModule):
    """The module that Lightning's documentation shows."""

    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.network(batch["input"]), batch["target"])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer(self.parameters())


class Clock(L.Callback):
    """Seconds from the first to the last batch of the fit."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def by_hand(network: nn.Module, loss: Callable, data: Data, steps: int) -> float:
    loader = ResumableLoader(data.train_set, GlobalBatchSampler(len(data.train_set), data.batch_size))
    step = optimizer(network.parameters())
    network.train()
    start = time.perf_counter()
    for _, batch in zip(range(steps), loader, strict=False):
        step.zero_grad()
        loss(network(batch["input"]), batch["target"]).backward()
        step.step()
    return (time.perf_counter() - start) / steps


def by_lightning(module: L.LightningModule, data: Data, steps: int, callbacks: list[L.Callback]) -> float:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            max_epochs=1,
            limit_train_batches=steps,
            accelerator="cpu",
            callbacks=[*callbacks, clock],
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
        ).fit(module, data)
    return clock.seconds / steps


def tokens_loss(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def workloads() -> dict[str, tuple[Callable[[], Network], type[Method], Callable, Dataset, int, int]]:
    images = Tensors(torch.rand(32_000, 64), torch.randint(10, (32_000,)))
    pictures = Tensors(torch.rand(6_400, 1, 28, 28), torch.randint(10, (6_400,)))
    tokens = torch.randint(256, (2_000, 129))
    return {
        # network, method, loss, data, batch size, steps
        "mlp": (partial(MLP, 64, 10, hidden=(64,)), Classification, functional.cross_entropy, images, 32, 800),
        "cnn": (partial(ConvNet, 1, 10), Classification, functional.cross_entropy, pictures, 64, 60),
        "gpt": (
            partial(GPT, 256, 128, dim=256, depth=4, num_heads=4),
            LanguageModeling,
            tokens_loss,
            Tensors(tokens[:, :-1], tokens[:, 1:]),
            8,
            20,
        ),
    }


def measure(name: str, rounds: int) -> None:
    make_network, method, loss, dataset, batch_size, steps = workloads()[name]
    data = partial(Data, dataset, batch_size)
    variants: dict[str, Callable[[], float]] = {
        "hand-written loop": lambda: by_hand(make_network(), loss, data(), steps),
        "Lightning": lambda: by_lightning(PlainModule(make_network(), loss), data(), steps, []),
        "Leyden, 0 callbacks": lambda: by_lightning(method(make_network(), optimizer=optimizer), data(), steps, []),
        "Leyden, 1 callback": lambda: by_lightning(
            method(make_network(), optimizer=optimizer), data(), steps, [WeightPenalty()]
        ),
        "Leyden, 4 callbacks": lambda: by_lightning(
            method(make_network(), optimizer=optimizer),
            data(),
            steps,
            [ExactResume(), WeightPenalty(), EMA(), LastCheckpoint()],
        ),
        "and RunRecord": lambda: by_lightning(
            method(make_network(), optimizer=optimizer),
            data(),
            steps,
            [ExactResume(), WeightPenalty(), EMA(), LastCheckpoint(), RunRecord()],
        ),
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds + 1):
        for variant, run in variants.items():
            taken = run()
            if number:  # the first round warms up
                seconds[variant].append(taken)
    size = sum(p.numel() for p in make_network().parameters())
    print(f"{name}: {size:,} parameters, batch {batch_size}, {steps} steps, {rounds} rounds")
    hand = seconds["hand-written loop"]
    for variant, taken in seconds.items():
        ratio = statistics.median(t / h for t, h in zip(taken, hand, strict=True))
        print(f"  {variant:20s} {1e3 * statistics.median(taken):8.3f} ms  {ratio:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=["mlp", "cnn", "gpt"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, lightning {L.__version__}, {torch.get_num_threads()} thread")
    for name in arguments.only:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
