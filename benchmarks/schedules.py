"""Accuracy of schedules at three budgets: an MLP on digits by SGD with momentum, every schedule with its own best rate.

The rate is chosen from one grid for all schedules, by validation loss over the tuning seeds (``--rates 0.2`` gives all
the same one); the table is of other seeds, paired with half a cosine. The refined schedule is made, for each budget,
from the gradient norms of the first tuning seed's run with linear decay at its best rate.

    python benchmarks/schedules.py [--seeds 20] [--tuning-seeds 10] [--rates 0.2]
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from leyden.analysis import paired_difference
from leyden.data import Digits
from leyden.models import MLP
from leyden.optim import UBALR, LinearDecayLR, RefinedLR, WarmupCosine, refined_schedule, smooth_grad_norms

BATCH_SIZE = 64
FULL_BUDGET = 380  # steps, 20 epochs
Schedule = Callable[..., LRScheduler]


def step_decay(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
    """A tenth of the rate after half and three quarters of the budget."""
    return MultiStepLR(optimizer, [total_steps // 2, 3 * total_steps // 4])


SCHEDULES: dict[str, Schedule] = {
    "cosine": partial(WarmupCosine, warmup=0),
    "linear": LinearDecayLR,
    "step": step_decay,
    "uba, phi = 0.5": partial(UBALR, phi=0.5),
    "uba, phi = 1": partial(UBALR, phi=1.0),
    "uba, phi = 5": partial(UBALR, phi=5.0),
}


class Task:
    """The data, and runs on them."""

    def __init__(self) -> None:
        self.tensors: dict[str, tuple[Tensor, Tensor]] = {}
        for split, dataset in Digits().datasets().items():
            samples = [dataset[number] for number in range(len(dataset))]
            images, labels = (torch.stack([sample[key] for sample in samples]) for key in ("input", "target"))
            self.tensors[split] = images.flatten(1), labels

    def run(self, schedule: Schedule, lr: float, steps: int, seed: int) -> tuple[dict[str, float], list[float]]:
        """Trains; returns loss and accuracy of validation and test, and the norms of all gradients."""
        torch.manual_seed(seed)
        network = MLP(64, 10, (128, 128))
        optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
        scheduler = schedule(optimizer, total_steps=steps)
        images, labels = self.tensors["train"]
        norms: list[float] = []
        for index in batches(len(labels), steps, seed):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[index]), labels[index]).backward()
            norms.append(get_total_norm([p.grad for p in network.parameters() if p.grad is not None]).item())
            optimizer.step()
            scheduler.step()
        values = {}
        for split in ("val", "test"):
            images, labels = self.tensors[split]
            with torch.no_grad():
                logits = network(images)
            loss = functional.cross_entropy(logits, labels).item()
            values |= {f"{split}/loss": loss if math.isfinite(loss) else math.inf}
            values |= {f"{split}/accuracy": (logits.argmax(-1) == labels).double().mean().item()}
        return values, norms

    def best_rate(self, schedule: Schedule, rates: list[float], steps: int, seeds: range) -> float:
        """The rate with the lowest mean validation loss."""
        losses = {
            lr: statistics.mean(self.run(schedule, lr, steps, seed)[0]["val/loss"] for seed in seeds) for lr in rates
        }
        return min(losses, key=losses.__getitem__)


def batches(num_samples: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Positions of the samples of each step: every epoch in an order of its own, without the last, smaller batch."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = num_samples // BATCH_SIZE
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(num_samples, generator=generator)
        yield order[step % per_epoch * BATCH_SIZE :][:BATCH_SIZE]


def measure(task: Task, grid: list[float], steps: int, tuning_seeds: range, seeds: range) -> None:
    """Prints the rows of one budget."""
    rates = {name: task.best_rate(schedule, grid, steps, tuning_seeds) for name, schedule in SCHEDULES.items()}
    schedules = dict(SCHEDULES)
    norms = smooth_grad_norms(task.run(LinearDecayLR, rates["linear"], steps, tuning_seeds[0])[1])
    schedules["refined"] = partial(RefinedLR, schedule=refined_schedule(norms))
    rates["refined"] = task.best_rate(schedules["refined"], grid, steps, tuning_seeds)
    results = {
        name: [task.run(schedule, rates[name], steps, seed)[0] for seed in seeds]
        for name, schedule in schedules.items()
    }
    for name, runs in results.items():
        cells = [f"{100 * steps // FULL_BUDGET} %", name, f"{rates[name]:g}"]
        for metric, scale, digits in (("test/accuracy", 100.0, 2), ("test/loss", 1.0, 4)):
            values, baseline = ([scale * run[metric] for run in some] for some in (runs, results["cosine"]))
            cells.append(f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
            difference = paired_difference(baseline, values)
            assert difference.interval is not None
            low, high = difference.interval
            shown = f"{difference.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            cells.append("" if name == "cosine" else shown)
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the table: 0, 1, ...")
    parser.add_argument("--tuning-seeds", type=int, default=10, help="seeds by which rates are chosen: 1000, 1001, ...")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| steps | schedule | rate | accuracy, % | minus cosine | loss | minus cosine |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    task = Task()
    for share in (4, 2, 1):
        tuning_seeds = range(1000, 1000 + arguments.tuning_seeds)
        measure(task, arguments.rates, FULL_BUDGET // share, tuning_seeds, range(arguments.seeds))


if __name__ == "__main__":
    main()
