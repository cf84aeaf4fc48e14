"""Dropout and input noise of an MLP on 200 digits: a self-tuning network, in one run, against a grid of fixed values.

The runs are those of ``configs/experiment/regularization/stn.yaml`` and ``digits_fixed_rates.yaml``.

    python benchmarks/self_tuning.py [--seeds 3]
"""

import argparse
import logging
import statistics
import warnings
from functools import partial
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from leyden.data import Digits, GaussianNoise
from leyden.methods import Classification, SelfTuning
from leyden.models import MLP, SelfTuningMLP
from leyden.nn import Hyperparameters

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
EPOCHS = 120


class Schedule(Callback):
    """Values of the hyperparameters after every 30 epochs."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, SelfTuning) and (trainer.current_epoch + 1) % 30 == 0:
            knobs = cast(Hyperparameters, pl_module.network.hyperparameters)
            values = knobs.values(knobs.h.unsqueeze(0))
            self.values.append(", ".join(f"{value.item():.2f}" for value in values.values()))


def fit(method: Classification, seed: int, std: float = 0.0) -> tuple[list[float], list[str]]:
    """Losses of validation and test, and the schedule."""
    data = Digits(
        num_train=200, batch_size=20, eval_batch_size=360, seed=seed, augment=GaussianNoise(std) if std else None
    )
    schedule = Schedule()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        callbacks=[schedule],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=data)
    val = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = val.validate(method, datamodule=data, verbose=False)[0]["val/loss"]
    return [found, trainer.test(method, datamodule=data, verbose=False)[0]["test/loss"]], schedule.values


def main() -> None:
    """Prints two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| dropout, noise | validation loss | test loss |\n| --- | --- | --- |")

    def row(name: str, found: list[list[float]]) -> None:
        val, test = (statistics.mean(column) for column in zip(*found, strict=True))
        print(f"| {name} | {val:.3f} | {test:.3f} |", flush=True)

    for dropout in (0.0, 0.3, 0.6):
        for std in (0.0, 0.2, 0.4):
            found = []
            for seed in range(arguments.seeds):
                seed_everything(seed, verbose=False)
                found.append(fit(Classification(MLP(64, 10, dropout=dropout), optimizer=SGD), seed, std)[0])
            row(f"{dropout:g}, {std:g}", found)
    found, schedules = [], []
    for seed in range(arguments.seeds):
        seed_everything(seed, verbose=False)
        method = SelfTuning(SelfTuningMLP(64, 10, scale=1.0), optimizer=SGD, warmup_epochs=1, hparam_lr=0.03)
        losses, values = fit(method, seed)
        found.append(losses)
        schedules.append(values)
    row("tuned from 0.05, 0.05", found)
    print("\n| seed | " + " | ".join(f"epoch {epoch}" for epoch in range(30, EPOCHS + 1, 30)) + " |")
    print("| --- |" + " --- |" * (EPOCHS // 30))
    for seed, values in enumerate(schedules):
        print(f"| {seed} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
