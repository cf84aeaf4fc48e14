"""Bilevel optimisation of L2 weights: MAID against gradient descent of one accuracy, at one budget.

Multinomial logistic regression on 200 digits with an L2 weight per pixel, fitted to the validation data. Each run ends
with the outer step after which it has used its budget: gradients of the lower level and products with its second
derivatives. Losses are those of the lower level's exact solution.

    python benchmarks/maid.py [--budget 8000] [--splits 3]
"""

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leyden.data import Digits
from leyden.methods.bilevel import maid
from leyden.optim import MAID

START = -5.0
EXACT = {"epsilon": 1e-5, "step_size": 1e-9}


def plain_step(search: MAID) -> None:
    """A step of gradient descent with one accuracy and one step size."""
    search.x = search._solve(search.theta, search.x)
    search.theta = search.theta - search.step_size * search._hypergradient(search.x)[0]


def parts(split_seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pixels and a column of ones, and classes, by part."""
    data = Digits(num_train=200, split_seed=split_seed)
    found = {}
    for name in ("train", "val", "test"):
        tensors = data.dataset(name).tensors  # type: ignore[attr-defined]
        pixels = tensors["input"].flatten(1).double()
        found[name] = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1), tensors["target"]
    return found


def solver(data: dict[str, tuple[Tensor, Tensor]], theta: Tensor, **settings: Any) -> MAID:
    return maid(*data["train"], *data["val"], x0=torch.zeros(65, 10).double(), theta0=theta, **settings)


def losses(data: dict[str, tuple[Tensor, Tensor]], theta: Tensor) -> list[float]:
    """Of validation and test, at the exact solution."""
    exact = solver(data, theta, **EXACT)
    x = exact._solve(theta, exact.x)
    return [functional.cross_entropy(data[part][0] @ x, data[part][1]).item() for part in ("val", "test")]


def run(data: dict[str, tuple[Tensor, Tensor]], budget: int, *, fixed: bool, **settings: float) -> list[float]:
    """Losses and the number of outer steps."""
    search = solver(data, torch.full((65,), START).double(), **settings)
    steps = 0
    while search.lower_iterations + search.cg_iterations < budget:
        if fixed:
            plain_step(search)
        else:
            search.step()
        steps += 1
    return [*losses(data, search.theta), steps]


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=8000)
    parser.add_argument("--splits", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = [parts(seed) for seed in range(arguments.splits)]
    print("| method | accuracy | step size | validation loss | test loss | outer steps |")
    print("| --- | --- | --- | --- | --- | --- |")

    def row(name: str, accuracy: str, step_size: str, found: list[list[float]]) -> None:
        val, test, steps = (statistics.mean(column) for column in zip(*found, strict=True))
        print(f"| {name} | {accuracy} | {step_size} | {val:.4f} | {test:.4f} | {steps:.0f} |", flush=True)

    for log_l2 in (START, -6.0, -7.0, -8.0, -9.0, -10.0):
        theta = torch.full((65,), log_l2).double()
        row(f"one L2 weight, exp({log_l2:g})", "", "", [[*losses(data, theta), 0] for data in splits])
    for epsilon in (0.1, 100.0, 1e-4):
        for step_size in (1.0, 100.0):
            settings = {"epsilon": epsilon, "delta": epsilon, "step_size": step_size}
            found = [run(data, arguments.budget, fixed=False, **settings) for data in splits]
            row("MAID", f"{epsilon:g} at first", f"{step_size:g} at first", found)
    for epsilon in (0.1, 0.01, 1e-3):
        for step_size in (1.0, 10.0, 100.0):
            settings = {"epsilon": epsilon, "delta": epsilon, "step_size": step_size}
            found = [run(data, arguments.budget, fixed=True, **settings) for data in splits]
            row("one accuracy", f"{epsilon:g}", f"{step_size:g}", found)


if __name__ == "__main__":
    main()
