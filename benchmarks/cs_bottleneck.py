"""Errors of a regression under attack, with and without the Cauchy-Schwarz information bottleneck.

An MLP learns scikit-learn's diabetes from the squared error or the divergence, with and without the compression of
features. The test inputs (of standard deviation 1) are then moved by ``eps`` along the sign of the gradient of each
network's own squared error. The wide network has no other regularization; the small one has dropout and weight decay,
and fewer epochs.

    python benchmarks/cs_bottleneck.py [--seeds 10]
"""

import argparse
import logging
import warnings
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from leyden.analysis import PairedDifference, paired_difference
from leyden.callbacks import CauchySchwarzBottleneck
from leyden.data import Diabetes, TensorDictDataset
from leyden.inference import pgd
from leyden.methods import Regression
from leyden.models import MLP
from leyden.optim import WarmupCosine

EPS = [0.0, 0.1, 0.2, 0.3]
WIDE = {"hidden": (128, 128, 128), "dropout": 0.0, "lr": 1e-3, "weight_decay": 0.0, "batch_size": 128, "epochs": 100}
SMALL = {"hidden": (32,), "dropout": 0.2, "lr": 3e-3, "weight_decay": 0.1, "batch_size": 32, "epochs": 20}
ARMS = {
    "squared error": None,
    "squared error, compression 1": {"weight": 1.0},
    "divergence": {"weight": 0.0, "divergence": True},
    "divergence, compression 0.01": {"weight": 0.01, "divergence": True},
    "divergence, compression 1": {"weight": 1.0, "divergence": True},
}


def errors(setup: dict[str, Any], arm: dict[str, Any] | None, seed: int) -> list[float]:
    """Root mean squared test error for each of ``EPS``, in units of the target; a seed has a split of its own."""
    seed_everything(seed, verbose=False)
    data = Diabetes(batch_size=setup["batch_size"], split_seed=seed)
    method = Regression(
        MLP(10, 1, setup["hidden"], dropout=setup["dropout"]),
        optimizer=partial(torch.optim.AdamW, lr=setup["lr"], weight_decay=setup["weight_decay"]),
        scheduler=WarmupCosine,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=setup["epochs"],
        callbacks=[] if arm is None else [CauchySchwarzBottleneck(**arm)],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, datamodule=data)
    test = cast(TensorDictDataset, data.dataset("test")).tensors
    network = method.network.eval()

    def squared_error(x: Tensor) -> Tensor:
        return (network(x) - test["target"]).square().sum(1)

    moved = [pgd(squared_error, test["input"], norm="linf", eps=e, step_size=e, steps=1, bounds=None) for e in EPS]
    with torch.no_grad():
        return [data.target_std * squared_error(x).mean().sqrt().item() for x in moved]


def main() -> None:
    """Prints two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for title, setup in {"wide network": WIDE, "small network": SMALL}.items():
        print(f"| {title}, trained on | " + " | ".join(f"eps {eps:g}" for eps in EPS) + " |")
        print("| --- |" + " --- |" * len(EPS))
        baseline: list[list[float]] = []
        for name, arm in ARMS.items():
            runs = [errors(setup, arm, seed) for seed in range(arguments.seeds)]
            cells = [f"{sum(values) / len(values):.1f}" for values in zip(*runs, strict=True)]
            if baseline:
                pairs = zip(zip(*baseline, strict=True), zip(*runs, strict=True), strict=True)
                found = [paired_difference(one, other) for one, other in pairs]
                cells = [f"{cell} ({_shown(difference)})" for cell, difference in zip(cells, found, strict=True)]
            baseline = baseline or runs
            print("| " + " | ".join([name, *cells]) + " |", flush=True)
        print()


def _shown(difference: PairedDifference) -> str:
    low, high = cast(tuple[float, float], difference.interval)
    return f"{difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
