"""Time that a small ResNet needs for the accuracy of usual training on images of 28 x 28 pixels, with multigrid
training and without, seed by seed in turns.

python benchmarks/multigrid.py FOLDER [--seeds 3] [--epochs 24]

FOLDER has one pair of MNIST files under their original names. A fifth of the images is trained on, and another tested.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.optim.lr_scheduler import MultiStepLR

from leyden.analysis import paired_difference
from leyden.callbacks import Multigrid
from leyden.data import MNISTFiles
from leyden.methods import Classification
from leyden.models import ResNet

BATCH_SIZE = 64
GRIDS = [(1.0, 0.5**0.5), (1.0, 1.0)]  # of the long cycle: 20 and 28 pixels; the short one adds 14 and 20


class Clock(Callback):
    """After every other epoch, notes steps, seconds of training (of the wall, and of the processor) and accuracy."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops them."""
        self.wall -= time.perf_counter()
        self.processor -= time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts them again."""
        accuracy = trainer.callback_metrics["val/accuracy"].item()
        self.rows.append((trainer.global_step, -self.wall, -self.processor, accuracy))
        self.wall += time.perf_counter()
        self.processor += time.process_time()


def train(root: str, seed: int, epochs: int, *, multigrid: bool) -> list[tuple[int, float, float, float]]:
    """Returns what the clock noted."""
    seed_everything(seed, verbose=False)
    data = MNISTFiles(root, val_fraction=0.2, test_fraction=0.6, batch_size=BATCH_SIZE, eval_batch_size=500, seed=seed)
    milestones = [epochs // 2, epochs * 3 // 4]
    steps = data.num_samples // BATCH_SIZE
    schedule = partial(MultiStepLR, milestones=[epoch * steps for epoch in milestones])
    method = Classification(
        ResNet(18, 10, in_channels=1, width=4),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        scheduler=None if multigrid else schedule,
    )
    clock = Clock()
    callbacks: list[Callback] = [clock]
    if multigrid:
        callbacks.append(Multigrid((1, 28), milestones, epochs, long_factors=GRIDS))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=round(1.5 * epochs) if multigrid else epochs,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=2,
        callbacks=callbacks,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    return clock.rows


def first(rows: list[tuple[int, float, float, float]], accuracy: float) -> tuple[int, float, float, float] | None:
    """Returns the row of the first epoch that has the accuracy."""
    return next((row for row in rows if row[-1] >= accuracy), None)


def main() -> None:
    """Prints a row per run, and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24, help="of usual training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    runs: dict[bool, list[Any]] = {False: [], True: []}
    print("| seed | multigrid | steps | seconds | accuracy |\n| --- | --- | --- | --- | --- |")
    for seed in range(arguments.seeds):
        for multigrid in (False, True):
            rows = train(arguments.root, seed, arguments.epochs, multigrid=multigrid)
            runs[multigrid].append(rows)
            steps, wall, processor, accuracy = rows[-1]
            print(f"| {seed} | {multigrid} | {steps} | {wall:.1f} ({processor:.1f}) | {accuracy:.4f} |", flush=True)

    usual, faster = runs[False], runs[True]
    print("accuracy:", paired_difference([rows[-1][-1] for rows in usual], [rows[-1][-1] for rows in faster]))
    for name, place in (("steps", 0), ("wall", 1), ("processor", 2)):
        ratios = [a[-1][place] / b[-1][place] for a, b in zip(usual, faster, strict=True)]
        print(f"{name}, whole fits: {statistics.mean(ratios):.2f} times less, {[round(ratio, 2) for ratio in ratios]}")
    goal = statistics.mean(rows[-1][-1] for rows in usual)  # one goal, so that a seed's luck is nobody's
    for name, rows_of in (("usual", usual), ("multigrid", faster)):
        reached = [first(rows, goal) for rows in rows_of]
        print(f"{name}, to {goal:.4f}:", [row and (row[0], round(row[1], 1), round(row[2], 1)) for row in reached])


if __name__ == "__main__":
    main()
