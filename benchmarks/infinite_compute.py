"""Little text and much compute: what larger networks and more of them tend to, and how much text the usual recipe would
need for it.

python benchmarks/infinite_compute.py [--replicates 5] [--members 4]
"""

import argparse
import warnings
from functools import partial
from itertools import combinations
from statistics import fmean

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.nn import functional

from leyden.analysis import data_efficiency, fit_saturating_power_law, paired_difference
from leyden.data import PydocTopics
from leyden.methods import LanguageModeling
from leyden.models import GPT
from leyden.optim import WarmupCosine

CONTEXT, STRIDE, EPOCHS = 64, 5200, 32
STRIDES = (10400, 5200, 2600, 1300)  # twice as much text each time, for the usual recipe
RATE, DECAY = 2e-3, 0.1  # of the usual recipe
RATES = {16: 5e-3, 32: 5e-3, 64: 3e-3}  # of the regularized recipe, by width; with the decays, the best in validation
DECAYS = {16: 1.0, 32: 3.0, 64: 3.0}


def text(stride: int, seed: int = 0) -> PydocTopics:
    """The text of which a training window is taken after each stride."""
    return PydocTopics(context=CONTEXT, stride=stride, batch_size=4, eval_batch_size=128, seed=seed)


def train(seed: int, width: int, *, stride: int, lr: float, weight_decay: float) -> Tensor:
    """Returns the logits ``[N, V]`` of all test tokens."""
    seed_everything(seed, verbose=False)
    method = LanguageModeling(
        GPT(256, CONTEXT, dim=width, depth=1),
        optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay),
        scheduler=partial(WarmupCosine, warmup=0.05),
        param_groups={"*.bias": {"weight_decay": 0.0}, "*norm*.weight": {"weight_decay": 0.0}},
    )
    data = text(stride, seed)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, data)
    method.eval()
    with torch.no_grad():
        return torch.cat([method(batch["input"]) for batch in data.test_dataloader()]).flatten(0, 1)


def losses_by_members(logits: list[Tensor], target: Tensor) -> list[float]:
    """Log losses of 1, 2, ... members, the mean over all ways to choose them."""
    return [
        fmean(
            functional.cross_entropy(torch.stack(chosen).mean(0), target).item()
            for chosen in combinations(logits, number)
        )
        for number in range(1, len(logits) + 1)
    ]


def interval(values: list[float]) -> str:
    """Mean and its 95 % interval."""
    found = paired_difference([0.0] * len(values), values)
    low, high = found.interval or (float("-inf"), float("inf"))  # of one replicate
    return f"{found.mean:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--members", type=int, default=4)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    data = text(STRIDE)
    target = torch.cat([batch["target"] for batch in data.test_dataloader()]).flatten()
    num_tokens = [text(stride).num_samples * CONTEXT for stride in STRIDES]

    usual = [
        fmean(
            functional.cross_entropy(train(seed, 32, stride=stride, lr=RATE, weight_decay=DECAY), target).item()
            for seed in range(arguments.replicates)
        )
        for stride in STRIDES
    ]
    law = fit_saturating_power_law(num_tokens, usual)
    print("usual recipe: " + ", ".join(f"{n} tokens {v:.3f}" for n, v in zip(num_tokens, usual, strict=True)))
    print(f"its law: {law}", flush=True)

    by_width: dict[int, list[list[float]]] = {}
    for width in DECAYS:
        by_width[width] = []
        for replicate in range(arguments.replicates):
            seeds = range(replicate * arguments.members, (replicate + 1) * arguments.members)
            recipe = {"stride": STRIDE, "lr": RATES[width], "weight_decay": DECAYS[width]}
            by_width[width].append(losses_by_members([train(seed, width, **recipe) for seed in seeds], target))
        print(f"width {width}: {[[round(v, 4) for v in row] for row in by_width[width]]}", flush=True)

    counts = range(1, arguments.members + 1)
    print("| width | " + " | ".join(f"{count} members" for count in counts) + " | asymptote |")
    print("| --- |" + " --- |" * (arguments.members + 1))
    limits: dict[int, list[float]] = {}
    for width, rows in by_width.items():
        limits[width] = [fit_saturating_power_law(counts, row).asymptote for row in rows]
        means = [f"{fmean(column):.3f}" for column in zip(*rows, strict=True)]
        print(f"| {width} | " + " | ".join([*means, interval(limits[width])]) + " |")
    best = min(by_width, key=lambda width: fmean(row[0] for row in by_width[width]))
    reached = {
        "usual recipe": usual[STRIDES.index(STRIDE)],
        "regularized": fmean(row[0] for row in by_width[best]),
        f"{arguments.members} members": fmean(row[-1] for row in by_width[best]),
        "members without end": fmean(limits[best]),
    }
    print("| recipe | test loss | text that the usual recipe needs, in multiples |\n| --- | --- | --- |")
    for name, loss in reached.items():
        efficiency = data_efficiency(loss, law, used=num_tokens[STRIDES.index(STRIDE)])
        print(f"| {name} | {loss:.3f} | {efficiency:.2f} |")


if __name__ == "__main__":
    main()
