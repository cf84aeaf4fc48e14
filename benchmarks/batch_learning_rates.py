"""The largest learning rates at which digits are learned, by the size of the batch, and what curvature says of them.

python benchmarks/batch_learning_rates.py [--seeds 3]
"""

import argparse
import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leyden.analysis import lanczos
from leyden.data import Digits
from leyden.models import MLP

SIZES, STEPS = (8, 32, 128, 512, 1258), 100
RATES = {"SGD": [2.0 ** (k / 2) for k in range(-8, 9)], "Adam": [2.0 ** (k / 2) for k in range(-20, 3)]}


def data() -> tuple[Tensor, Tensor]:
    """Returns the training set."""
    dataset = Digits().dataset("train")
    batch = dataset.__getitems__(list(range(len(dataset))))  # type: ignore[attr-defined]
    return batch["input"].flatten(1), batch["target"]


def network(seed: int) -> nn.Module:
    """Returns a new one."""
    torch.manual_seed(seed)
    return MLP(64, 10, (64,))


def loss_after(seed: int, size: int, kind: type[Optimizer], lr: float) -> float:
    """Trains at a constant rate, and returns the loss on the training set as a share of the first one."""
    (x, y), model = data(), network(seed)
    optimizer = kind(model.parameters(), lr=lr)
    with torch.no_grad():
        first = nn.functional.cross_entropy(model(x), y).item()
    for _ in range(STEPS):
        rows = torch.randperm(len(x))[:size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        last = nn.functional.cross_entropy(model(x), y).item()
    return last / first if math.isfinite(last) else math.inf


def largest_rate(seed: int, size: int, name: str) -> float:
    """The last rate of the grid before the first with which the loss does not fall."""
    kind = torch.optim.SGD if name == "SGD" else torch.optim.Adam
    rates = RATES[name]
    stable = [loss_after(seed, size, kind, lr) < 1.0 for lr in rates]
    return rates[max(0, stable.index(False) - 1)] if False in stable else rates[-1]


def two_over_curvature(seed: int, size: int) -> float:
    """2 over the mean largest eigenvalue of the Hessians of 8 batches, before training."""
    (x, y), model = data(), network(seed)
    params = list(model.parameters())

    def product(rows: Tensor, vector: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            grads = torch.autograd.grad(loss, params, create_graph=True)
            slope = torch.cat([g.flatten() for g in grads]) @ vector
            return torch.cat([g.flatten() for g in torch.autograd.grad(slope, params)])

    largest = []
    for _ in range(8):
        rows = torch.randperm(len(x))[:size]
        start = torch.randn(sum(p.numel() for p in params))
        largest.append(lanczos(partial(product, rows), start, 12)[0][-1].item())
    return 2.0 * len(largest) / sum(largest)


def main() -> None:
    """Measures everything and prints a table of geometric means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    print("| batch | SGD, largest rate | Adam, largest rate | 2 / largest eigenvalue, before training |")
    print("| --- | --- | --- | --- |")
    for size in SIZES:
        rows = [
            [largest_rate(seed, size, "SGD") for seed in seeds],
            [largest_rate(seed, size, "Adam") for seed in seeds],
            [two_over_curvature(seed, size) for seed in seeds],
        ]
        means = [math.exp(sum(map(math.log, values)) / len(values)) for values in rows]
        print(f"| {size} | " + " | ".join(f"{mean:.3g}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    main()
