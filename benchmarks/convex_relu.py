"""The convex optimum of a two-layer ReLU network against the best of many runs of Adam and SGD, on one objective.

Some digits 3 and 8 on their first two principal components, targets -1 and 1. The objective is ``sum of squared errors
/ 2 + beta / 2 * sum of squared weights``. So few samples have few sign patterns, and the convex problem over all of
them has the optimum of every network; a second row has what a few sampled patterns give.

    python benchmarks/convex_relu.py [--samples 10] [--seeds 10] [--steps 2000]
"""

import argparse
import statistics
import time

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor

from leyden.optim import convex_relu_admm, relu_from_convex, sample_arrangements

RATES = {"Adam": (0.003, 0.01, 0.03), "SGD, momentum 0.9": (0.001, 0.003, 0.01)}


def objective(X: Tensor, y: Tensor, U: Tensor, alpha: Tensor, beta: float) -> Tensor:
    errors = (X @ U.T).relu() @ alpha - y
    return 0.5 * errors.square().sum() + 0.5 * beta * (U.square().sum() + alpha.square().sum())


def descend(X: Tensor, y: Tensor, width: int, beta: float, kind: str, lr: float, steps: int, seed: int) -> float:
    """Objective after full-batch training from a usual start; half a cosine lowers the rate."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.randn(width, X.shape[1], generator=generator, dtype=X.dtype) / X.shape[1] ** 0.5
    alpha = torch.randn(width, generator=generator, dtype=X.dtype) / width**0.5
    params = [U.requires_grad_(), alpha.requires_grad_()]
    optimizer = torch.optim.Adam(params, lr=lr) if kind == "Adam" else torch.optim.SGD(params, lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(X, y, U, alpha, beta).backward()
        optimizer.step()
        scheduler.step()
    return objective(X, y, U, alpha, beta).item()


def convex(X: Tensor, y: Tensor, beta: float, draws: int, seed: int) -> tuple[float, int]:
    """Objective of the network of the convex optimum, and the number of patterns."""
    patterns = sample_arrangements(X, draws, torch.Generator().manual_seed(seed))
    U, alpha = relu_from_convex(*convex_relu_admm(X, y, patterns, beta=beta, iterations=20_000, tol=1e-4))
    return objective(X, y, U, alpha, beta).item(), len(patterns)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--width", type=int, default=50, help="neurons of the networks that descend")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    chosen = (digits.target == 3) | (digits.target == 8)
    components = PCA(2, whiten=True, random_state=0).fit_transform(digits.data[chosen])
    X = torch.cat([torch.from_numpy(components), torch.ones(int(chosen.sum()), 1)], 1).double()[: arguments.samples]
    y = torch.from_numpy(digits.target[chosen] / 2.5 - 2.2)[: arguments.samples]  # 3 and 8 to -1 and 1
    n = arguments.samples - 1
    print(
        f"{len(X)} samples of 2 components and a constant: {2 * (1 + n + n * (n - 1) // 2)} sign patterns; beta = "
        f"{arguments.beta:g}"
    )
    print("| method | patterns or width | best | median | worst | seconds a run |")
    print("| --- | --- | --- | --- | --- | --- |")

    def row(name: str, size: str, values: list[float], started: float) -> None:
        cells = [f"{value:.5f}" for value in (min(values), statistics.median(values), max(values))]
        seconds = (time.perf_counter() - started) / len(values)
        print("| " + " | ".join([name, size, *cells, f"{seconds:.1f}"]) + " |", flush=True)

    for name, draws, seeds in (("convex, all patterns", 100_000, [0]), ("convex, sampled", 40, range(arguments.seeds))):
        started = time.perf_counter()
        found = [convex(X, y, arguments.beta, draws, seed) for seed in seeds]
        row(name, f"{max(patterns for _, patterns in found)}", [value for value, _ in found], started)
    for kind, rates in RATES.items():
        for lr in rates:
            started = time.perf_counter()
            runs = range(arguments.seeds)
            values = [descend(X, y, arguments.width, arguments.beta, kind, lr, arguments.steps, seed) for seed in runs]
            row(f"{kind}, rate {lr:g}", str(arguments.width), values, started)


if __name__ == "__main__":
    main()
