"""Combinations of the checkpoints of a consistency model of digits: searched by one half of the held-out digits, and
measured on the other, after ever more training steps.

python benchmarks/lcsc.py [--seeds 5] [--epochs 25] [--iterations 200]
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from leyden.analysis import paired_difference
from leyden.core import normal, sample_keys
from leyden.data import Digits
from leyden.methods import ConsistencyTraining
from leyden.metrics import FrechetDistance
from leyden.models import UNet
from leyden.weights import ema_coefficients, lcsc_search

EVERY, WINDOW = 10, 24  # steps between snapshots, and their number
SHARES = (0.5, 0.75, 1.0)  # of the steps
DECAYS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ROWS = ("last weights", "uniform average", "best EMA", "LCSC")


class Snapshots(Callback):
    """Keeps the weights in memory."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a snapshot."""
        if trainer.global_step % EVERY == 0:
            self.weights.append(parameters_to_vector(pl_module.parameters()).detach().clone())


def train(seed: int, epochs: int) -> tuple[ConsistencyTraining, list[Tensor]]:
    """Returns the method and its snapshots."""
    seed_everything(seed, verbose=False)
    method = ConsistencyTraining(
        UNet(width=8), s0=4, s1=64, optimizer=partial(torch.optim.RAdam, lr=5e-3), num_pictures=0
    )
    snapshots = Snapshots()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=[snapshots],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, Digits(batch_size=64, mean=0.5, std=0.5, seed=seed))
    return method.eval(), snapshots.weights


def distance_to(
    real: Tensor, method: ConsistencyTraining, weights: Tensor, *, stream: int
) -> Callable[[Tensor], float]:
    """The Frechet distance of one-step samples, the same noise every time, as a function of the coefficients."""
    noise = normal(sample_keys(0, stream, torch.arange(len(real))), *real.shape[1:])

    def distance(coefficients: Tensor) -> float:
        vector_to_parameters((coefficients @ weights.double()).float(), method.parameters())
        metric = FrechetDistance()
        metric.update(real, method(noise))
        return metric.compute().item()

    return distance


def measure(
    method: ConsistencyTraining, weights: Tensor, halves: tuple[Tensor, ...], iterations: int
) -> list[list[float]]:
    """Distances to the half that is searched by and to the other one, for each of `ROWS`."""
    search, held_out = (distance_to(half, method, weights, stream=number) for number, half in enumerate(halves))
    averages = [ema_coefficients(len(weights), decay) for decay in DECAYS]
    generator = torch.Generator().manual_seed(0)
    best, _ = lcsc_search(search, len(weights), iterations=iterations, parents=5, decays=DECAYS, generator=generator)
    uniform = torch.full_like(best, 1.0 / len(best))
    found = [averages[0], uniform, min(averages, key=search), best]
    return [[search(coefficients), held_out(coefficients)] for coefficients in found]


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=200)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    parts = Digits(mean=0.5, std=0.5).datasets()
    digits = torch.cat([parts[name].tensors["input"] for name in ("val", "test")])  # type: ignore[attr-defined]
    halves = digits[::2], digits[1::2]
    runs = []
    for seed in range(arguments.seeds):
        method, snapshots = train(seed, arguments.epochs)
        counts = [round(share * len(snapshots)) for share in SHARES]
        with torch.no_grad():
            runs.append(
                [measure(method, torch.stack(snapshots[:n][-WINDOW:]), halves, arguments.iterations) for n in counts]
            )
        print(f"seed {seed}: {[[round(v, 3) for v in row] for row in runs[-1][-1]]}", flush=True)
    table = torch.tensor(runs)  # [seeds, counts, rows, 2]
    print("| weights | " + " | ".join(f"{EVERY * n} steps" for n in counts) + " | by which it was chosen, at the end |")
    print("| --- |" + " --- |" * (len(counts) + 1))
    for number, name in enumerate(ROWS):
        cells = [f"{value:.3f}" for value in [*table[:, :, number, 1].mean(0), table[:, -1, number, 0].mean()]]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for half, name in enumerate(("searched by", "held out")):
        for number, n in enumerate(counts):
            lcsc, ema = (table[:, number, row, half].tolist() for row in (3, 2))
            found = paired_difference(ema, lcsc)
            low, high = found.interval or (float("-inf"), float("inf"))  # of one seed
            print(f"LCSC - best EMA, half {name}, {EVERY * n} steps: {found.mean:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
