"""Consistency models of images in MNIST's format: plain and improved training, Frechet distances of their samples.

python benchmarks/consistency.py FOLDER [--steps 2000] [--seeds 2] [--width 16]

The distance is that of the features of a classifier, trained here first on the same images.
"""

import argparse
import statistics
import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from leyden.callbacks import EMA
from leyden.core import Method, Network
from leyden.data import MNISTFiles
from leyden.methods import Classification, ConsistencyTraining
from leyden.models import ConvNet, UNet

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"improved": False, "s1": 64},
    "improved": {"improved": True, "s0": 4, "s1": 64},
}


def fit(method: Method, path: str, *, steps: int, seed: int, decay: float) -> dict[str, float]:
    """Trains, and returns the metrics of the test."""
    data = MNISTFiles(path, mean=(0.5,), std=(0.5,), batch_size=64, eval_batch_size=500, seed=seed)
    trainer = Trainer(
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[EMA(decay, warmup=True)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    return dict(trainer.test(method, data, verbose=False)[0])


def classifier(path: str, *, steps: int) -> tuple[Network, float]:
    """A trained network, and its accuracy."""
    seed_everything(0, verbose=False)
    method = Classification(ConvNet(1, 10, width=16), optimizer=partial(torch.optim.AdamW, lr=3e-3))
    accuracy = fit(method, path, steps=steps, seed=0, decay=0.99)["test/accuracy"]
    return method.network, accuracy


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder of train-images-idx3-ubyte and the other files, plain or .gz")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=int, default=16)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    features, accuracy = classifier(arguments.path, steps=min(arguments.steps, 500))
    print(f"classifier: accuracy {accuracy:.4f}\n")
    print("| training | one step | two steps |\n| --- | --- | --- |")
    for name, arm in ARMS.items():
        found = []
        for seed in range(arguments.seeds):
            seed_everything(seed, verbose=False)
            method = ConsistencyTraining(
                UNet(width=arguments.width, multipliers=(1, 2, 2)),
                features=features,
                optimizer=partial(torch.optim.RAdam, lr=2e-3),
                **arm,
            )
            found.append(fit(method, arguments.path, steps=arguments.steps, seed=seed, decay=0.999))
        cells = []
        for metric in ("frechet_distance", "frechet_distance_two_step"):
            values = [run[f"test/{metric}"] for run in found]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
