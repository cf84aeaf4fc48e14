"""Forecasts of a series with missing values, with CRIB and without: a table of test errors.

python benchmarks/missing_series.py ETTh1.csv [--seeds 2] [--epochs 12]
"""

import argparse
import statistics
import warnings
from functools import partial

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from leyden.callbacks import CRIB
from leyden.data import SeriesFile
from leyden.methods import Regression
from leyden.models import UnifiedVariateTransformer
from leyden.optim import WarmupCosine

SETTINGS = [("points", 0.2), ("points", 0.4), ("points", 0.6), ("columns", 0.4)]
ARMS: dict[str, dict[str, float]] = {"plain": {"kl_weight": 0.0, "consistency_weight": 0.0}, "CRIB": {}}


def fit(path: str, missing: str, rate: float, arm: dict[str, float], seed: int, epochs: int) -> float:
    """Trains and returns the mean absolute error of the test."""
    seed_everything(seed, verbose=False)
    data = SeriesFile(path, missing=missing, missing_rate=rate, batch_size=128, seed=seed)
    network = UnifiedVariateTransformer(len(data.columns), dim=16, depth=1)
    method = Regression(
        network,
        loss=nn.L1Loss(),
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0),
        scheduler=partial(WarmupCosine, warmup=0.05),
    )
    callbacks: list[Callback] = [CRIB(**arm)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=callbacks,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    return trainer.test(method, data, verbose=False)[0]["test/mae"]


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="CSV file: a header line, a column of dates, and one column per variate")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| missing | " + " | ".join(f"MAE, {name}" for name in ARMS) + " |")
    print("| --- |" + " --- |" * len(ARMS))
    for missing, rate in SETTINGS:
        cells = []
        for arm in ARMS.values():
            runs = [fit(arguments.path, missing, rate, arm, seed, arguments.epochs) for seed in range(arguments.seeds)]
            cells.append(f"{statistics.mean(runs):.4f} ({min(runs):.4f} to {max(runs):.4f})")
        print(f"| {rate:.0%} of the {missing} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
