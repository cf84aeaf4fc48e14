"""Throughput of loaders and samplers: Leyden's, torch's, and torchdata's StatefulDataLoader where it is installed.

All read the same data sets in one process, in turn. Printed are samples per second, medians over the rounds, and
medians of the ratio to torch's in the same round. A data set that hands out whole batches (``__getitems__``) is read as
such by all of them; ``one by one`` is a data set that has only ``__getitem__``.

    python benchmarks/loader.py [--rounds 11]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler

from leyden.core import Batch
from leyden.data import GlobalBatchSampler, ResumableLoader

BATCH_SIZE = 64


class OneByOne(Dataset):
    def __init__(self, num_samples: int, size: int) -> None:
        self.inputs, self.targets = torch.rand(num_samples, size), torch.randint(10, (num_samples,))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Batch:
        return {"input": self.inputs[index], "target": self.targets[index]}


class Whole(OneByOne):
    def __getitems__(self, indices: list[int]) -> Batch:
        picked = torch.tensor(indices)
        return {"input": self.inputs[picked], "target": self.targets[picked]}


def _as_is(batch: Batch) -> Batch:
    return batch


def loaders(dataset: OneByOne, num_workers: int) -> dict[str, Iterable]:
    options = {"batch_size": BATCH_SIZE, "shuffle": True, "drop_last": True, "num_workers": num_workers}
    options |= {"persistent_workers": num_workers > 0, "collate_fn": _as_is if isinstance(dataset, Whole) else None}
    found: dict[str, Iterable] = {
        "torch DataLoader": DataLoader(dataset, **options),
        "leyden ResumableLoader": ResumableLoader(
            dataset, GlobalBatchSampler(len(dataset), BATCH_SIZE), num_workers=num_workers
        ),
    }
    if find_spec("torchdata"):
        from torchdata.stateful_dataloader import StatefulDataLoader

        found["torchdata StatefulDataLoader"] = StatefulDataLoader(dataset, **options)
    return found


def read(loader: Iterable) -> int:
    if isinstance(loader, ResumableLoader):
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
    return sum(len(batch["input"]) for batch in loader)


def samplers(num_samples: int) -> dict[str, Iterable]:
    every: Tensor = torch.empty(num_samples)
    return {
        "torch RandomSampler": BatchSampler(RandomSampler(every), BATCH_SIZE, drop_last=True),
        "torch DistributedSampler": BatchSampler(
            DistributedSampler(every, num_replicas=2, rank=0, drop_last=True), BATCH_SIZE // 2, drop_last=True
        ),
        "leyden GlobalBatchSampler": GlobalBatchSampler(num_samples, BATCH_SIZE),
        "leyden, one process of two": GlobalBatchSampler(num_samples, BATCH_SIZE, num_replicas=2),
    }


def plan(sampler: Iterable) -> int:
    if isinstance(sampler, GlobalBatchSampler):
        sampler.set_epoch(sampler.epoch + 1)
        return sum(len(indices) for _, indices in sampler)
    return sum(len(indices) for indices in sampler)


def measure(title: str, variants: dict[str, Iterable], run: Callable[[Iterable], int], rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            samples = run(variant)
            if number:  # the first round starts processes
                rates[name].append(samples / (time.perf_counter() - start))
    first, *_ = rates.values()
    print(f"{title}: {rounds} rounds")
    for name, rate in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rate, first, strict=True))
        print(f"  {name:30s} {statistics.median(rate):12,.0f} samples/s  {ratio:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, batches of {BATCH_SIZE}")
    for kind, name in ((Whole, "whole batches"), (OneByOne, "one by one")):
        for num_workers in (0, 2):
            dataset = kind(20_000, 784)
            measure(f"{name}, {num_workers} workers", loaders(dataset, num_workers), read, rounds)
    measure("order of 1,281,167 samples", samplers(1_281_167), plan, rounds)


if __name__ == "__main__":
    main()
