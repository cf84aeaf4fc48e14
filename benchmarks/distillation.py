"""Every objective of distillation against none and against Hinton's, on digits: accuracy, and the time of a step.

python benchmarks/distillation.py [--seeds 5]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from leyden import losses
from leyden.analysis import PairedDifference, paired_difference
from leyden.callbacks import Distillation
from leyden.core import Network
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet
from leyden.nn import LogitProjector, Projector
from leyden.optim import WarmupCosine

MAPS, FEATURES = {"body.2": "body.2"}, {"features": "features"}
HINTON = {"weight": 0.9, "base_weight": 0.1}
ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {  # arguments of each Distillation; weights were not tuned
    "none": lambda: [],
    "KD": lambda: [HINTON],
    "DKD": lambda: [{"objective": losses.DKD(beta=2.0)}],
    "DIST": lambda: [{"objective": losses.DIST()}],
    "PLD": lambda: [{"objective": losses.PLD(), "base_weight": 0.0}],
    "OFA, two exits": lambda: [
        {
            "objective": losses.OFA(eps=1.2),
            "taps": {"body.0": "logits", "body.2": "logits", "logits": "logits"},
            "projectors": LogitProjector,
        }
    ],
    "SSLD, no labels": lambda: [{"objective": losses.SSLD(), "base_weight": 0.0}],
    "KD, SinkhornKD": lambda: [HINTON, {"objective": losses.SinkhornKD(), "weight": 0.8}],
    "KD, AttentionTransfer": lambda: [
        HINTON,
        {"objective": losses.AttentionTransfer(), "taps": MAPS, "weight": 100.0},
    ],
    "RKD": lambda: [{"objective": losses.RKD(), "taps": FEATURES}],
    "SimilarityPreserving": lambda: [{"objective": losses.SimilarityPreserving(), "taps": MAPS, "weight": 100.0}],
    "MSE of features": lambda: [{"objective": nn.MSELoss(), "taps": FEATURES, "projectors": Projector}],
}


class Clock(Callback):
    """Adds up the time of training steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0

    def on_train_batch_start(self, *args: Any) -> None:
        """Starts."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stops."""
        self.seconds += time.perf_counter() - self._start
        self.steps += 1


def train(network: Network, seed: int, epochs: int, callbacks: list[Callback]) -> tuple[float, float]:
    """Returns test accuracy and the time of a step in milliseconds."""
    method = Classification(
        network,
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.05),
        scheduler=partial(WarmupCosine, warmup=0.05),
    )
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=[*callbacks, clock],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits(num_train=300, batch_size=32, eval_batch_size=256, seed=seed)
    trainer.fit(method, data)
    return trainer.test(method, data, verbose=False)[0]["test/accuracy"], 1e3 * clock.seconds / clock.steps


def text(difference: PairedDifference) -> str:
    """The mean difference and its interval."""
    return f"{difference.mean:+.4f} [{difference.interval[0]:+.4f}, {difference.interval[1]:+.4f}]"


def main() -> None:
    """Trains everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    teachers, runs = [], {}
    for seed in seeds:
        seed_everything(seed, verbose=False)
        teachers.append(ConvNet(1, 10, width=32))
        accuracy, _ = train(teachers[-1], seed, 15, [])
        print(f"teacher, seed {seed}: {accuracy:.4f}")
    for name, arguments in ROWS.items():
        runs[name] = []
        for seed in seeds:
            seed_everything(seed, verbose=False)
            student = ConvNet(1, 10, width=4)
            callbacks = [
                Distillation(deepcopy(teachers[seed]) if number == 0 else None, **given)
                for number, given in enumerate(arguments())
            ]
            runs[name].append(train(student, seed, 60, callbacks))
    accuracies = {name: [accuracy for accuracy, _ in found] for name, found in runs.items()}
    print("\n| objective | accuracy | minus none [95 %] | minus KD [95 %] | ms per step |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in accuracies.items():
        none = "" if name == "none" else text(paired_difference(accuracies["none"], found))
        hinton = "" if name in ("none", "KD") else text(paired_difference(accuracies["KD"], found))
        step = min(milliseconds for _, milliseconds in runs[name])
        print(f"| {name} | {sum(found) / len(found):.4f} | {none} | {hinton} | {step:.2f} |")


if __name__ == "__main__":
    main()
