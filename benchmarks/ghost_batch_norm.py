"""Ghost batch norm and an adapted regime: how much of what a large batch costs in accuracy they give back, on digits.

python benchmarks/ghost_batch_norm.py [--seeds 5]
"""

import argparse
import warnings
from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything

from leyden.analysis import paired_difference
from leyden.callbacks import GhostBatchNorm
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet
from leyden.optim import WarmupCosine, adapt_regime, scale_lr

SMALL, LARGE, LR = 32, 512, 0.05  # the rate is that of the small batch
ROWS = {  # batch, as many epochs or as many updates, ghost batch norm
    "32": (SMALL, False, False),
    "512, as many epochs": (LARGE, False, False),
    "512, as many epochs, ghost batch norm": (LARGE, False, True),
    "512, as many updates": (LARGE, True, False),
    "512, as many updates, ghost batch norm": (LARGE, True, True),
}


def train(seed: int, epochs: int, batch_size: int, adapt: bool, ghost: bool) -> tuple[float, int]:
    """Returns test accuracy and the number of optimizer steps."""
    seed_everything(seed, verbose=False)
    method = Classification(
        ConvNet(1, 10, width=8),
        optimizer=partial(torch.optim.SGD, lr=scale_lr(LR, batch_size, SMALL, rule="sqrt"), momentum=0.9),
        scheduler=partial(WarmupCosine, warmup=0.05),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=adapt_regime([epochs], batch_size, SMALL)[0] if adapt else epochs,
        limit_val_batches=0,
        gradient_clip_val=5.0,
        callbacks=[GhostBatchNorm(SMALL)] if ghost else [],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits(batch_size=batch_size, eval_batch_size=256)
    trainer.fit(method, data)
    return trainer.test(method, data, verbose=False)[0]["test/accuracy"], trainer.global_step


def main() -> None:
    """Trains everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = {
        name: [train(seed, arguments.epochs, *row) for seed in range(arguments.seeds)] for name, row in ROWS.items()
    }
    print("| batch | test accuracy | updates | minus batch 32 [95 %] |\n| --- | --- | --- | --- |")
    small = [accuracy for accuracy, _ in runs["32"]]
    for name, found in runs.items():
        accuracies = [accuracy for accuracy, _ in found]
        gap = ""
        if name != "32":
            difference = paired_difference(small, accuracies)
            low, high = difference.interval
            gap = f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {name} | {sum(accuracies) / len(accuracies):.4f} | {found[0][1]} | {gap} |")


if __name__ == "__main__":
    main()
