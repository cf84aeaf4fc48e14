"""Batches that grow by the norm test of AdAdaGrad against small ones: accuracy and optimizer steps, on digits.

python benchmarks/adaptive_batch_size.py [--seeds 5]
"""

import argparse
import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from leyden.analysis import paired_difference
from leyden.callbacks import AdaptiveBatchSize
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP
from leyden.optim import WarmupCosine

EPOCHS, LR = 10, 0.05  # as in configs/experiment/batch/small_batch_digits.yaml, and adadagrad.yaml
ROWS = {"constant, 8": (8, False), "adaptive, from 8": (8, True), "constant, 64": (64, False)}


class Sizes(Callback):
    """Notes the samples of each optimizer step."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes those of this one."""
        self.sizes.append(len(batch["index"]))


def train(seed: int, batch_size: int, adaptive: bool) -> tuple[float, list[int]]:
    """Returns test accuracy and the sizes of the steps."""
    seed_everything(seed, verbose=False)
    method = Classification(
        MLP(64, 10, (64,)),
        optimizer=partial(torch.optim.Adagrad, lr=LR * (batch_size / 8) ** 0.5),
        scheduler=partial(WarmupCosine, warmup=0.05),
    )
    sizes = Sizes()
    grow = AdaptiveBatchSize(eta=1.25, interval=5, max_batch_size=64, lr_rule="sqrt")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        callbacks=[sizes, *([grow] if adaptive else [])],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits(batch_size=batch_size, eval_batch_size=256)
    trainer.fit(method, data)
    return trainer.test(method, data, verbose=False)[0]["test/accuracy"], sizes.sizes


def main() -> None:
    """Trains everything and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = {name: [train(seed, *row) for seed in seeds] for name, row in ROWS.items()}
    print("| batch | test accuracy | optimizer steps | samples |\n| --- | --- | --- | --- |")
    for name, found in runs.items():
        accuracy = sum(value for value, _ in found) / len(found)
        steps = [len(sizes) for _, sizes in found]
        samples = sum(sum(sizes) for _, sizes in found) / len(found)
        mean = sum(steps) / len(steps)
        print(f"| {name} | {accuracy:.4f} | {mean:.0f} ({min(steps)} to {max(steps)}) | {samples:.0f} |")
    small, grown = ([value for value, _ in runs[name]] for name in list(ROWS)[:2])
    print("\nAccuracy, adaptive minus constant 8:", paired_difference(small, grown))
    sizes = runs["adaptive, from 8"][0][1]
    print("\n| size | " + " | ".join(str(size) for size in sorted({*sizes})) + " |")
    print("| --- " * (1 + len({*sizes})) + "|")
    print("| from step | " + " | ".join(str(sizes.index(size)) for size in sorted({*sizes})) + " |")
    print("| samples seen | " + " | ".join(str(sum(sizes[: sizes.index(s)])) for s in sorted({*sizes})) + " |")


if __name__ == "__main__":
    main()
