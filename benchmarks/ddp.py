"""What a second process brings: images or tokens per second on one process and on two, with the same global batch.

A hand-written loop with `DistributedDataParallel`, plain Lightning, and Leyden with its default callbacks, each on one
and on two processes of one thread, in turn. On a machine with fewer than two free cores there is nothing to be won.

    python benchmarks/ddp.py [--rounds 5] [--only cnn gpt]
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from functools import partial

import lightning as L
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.loggers import CSVLogger
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from leyden.callbacks import EMA, ExactResume, LastCheckpoint
from leyden.core import Batch, Method
from leyden.data import DataModule
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, ConvNet

STEPS, WARM_UP = 30, 5


class Rows(TensorDataset):
    def __getitems__(self, indices: list[int]) -> Batch:
        picked = torch.tensor(indices)
        return {"input": self.tensors[0][picked], "target": self.tensors[1][picked]}


class Data(DataModule):
    def __init__(self, rows: Rows, batch_size: int) -> None:
        super().__init__(batch_size)
        self.rows = rows

    def datasets(self) -> dict[str, Rows]:
        return {"train": self.rows}


class Plain(L.LightningModule):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        return loss_of(self.network, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Clock(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        if trainer.global_step == WARM_UP + STEPS:
            self.seconds = time.perf_counter() - self.start


def loss_of(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = network(inputs)
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def workload(name: str) -> tuple[torch.nn.Module, type[Method], Rows, int]:
    torch.manual_seed(0)
    if name == "cnn":
        rows = Rows(torch.rand(4_096, 1, 28, 28), torch.randint(10, (4_096,)))
        return ConvNet(1, 10, width=32), Classification, rows, 64
    tokens = torch.randint(256, (1_024, 129))
    rows = Rows(tokens[:, :-1], tokens[:, 1:])
    return GPT(256, 128, dim=256, depth=4, num_heads=4), LanguageModeling, rows, 16


def by_hand(name: str, rank: int, size: int) -> float:
    network, _, rows, batch_size = workload(name)
    wrapped = DistributedDataParallel(network) if size > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    sampler = DistributedSampler(rows, num_replicas=size, rank=rank)
    loader = iter(DataLoader(rows, batch_size // size, sampler=sampler, collate_fn=lambda b: tuple(b.values())))
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad()
        loss_of(wrapped, *next(loader)).backward()
        optimizer.step()
    return time.perf_counter() - start


def by_lightning(name: str, rank: int, size: int, *, leyden: bool) -> float:
    network, method, rows, batch_size = workload(name)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=WARM_UP + STEPS,
            accelerator="cpu",
            devices=size,
            strategy="ddp" if size > 1 else "auto",
            callbacks=[*([ExactResume(), EMA(), LastCheckpoint()] if leyden else []), clock],
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_checkpointing=leyden,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=not leyden,
        )
        if leyden:
            module = method(network, optimizer=partial(torch.optim.AdamW, lr=1e-4))
            trainer.fit(module, Data(rows, batch_size))
        else:
            loader = DataLoader(rows, batch_size // size, shuffle=True, collate_fn=lambda b: tuple(b.values()))
            trainer.fit(Plain(network), loader)
    return clock.seconds


VARIANTS = {
    "hand-written loop": by_hand,
    "Lightning": partial(by_lightning, leyden=False),
    "Leyden": partial(by_lightning, leyden=True),
}


def process(rank: int, size: int, port: int, name: str, variant: str, seconds: torch.Tensor) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ddp"} if size > 1 else {}
    os.environ.update({key: str(value) for key, value in names.items()})
    if size > 1:
        dist.init_process_group("gloo")
    seconds[rank] = VARIANTS[variant](name, rank, size)


def measure(name: str, rounds: int) -> None:
    batch_size = workload(name)[-1]
    rates: dict[tuple[str, int], list[float]] = {(variant, size): [] for variant in VARIANTS for size in (1, 2)}
    for _ in range(rounds):
        for variant, size in rates:
            seconds = torch.zeros(size).share_memory_()
            mp.spawn(process, (size, get_free_port(), name, variant, seconds), nprocs=size)
            rates[variant, size].append(STEPS * batch_size / float(seconds.max()))
    print(f"{name}: global batch {batch_size}, {STEPS} steps, {rounds} rounds; samples per second")
    for variant in VARIANTS:
        one, two = rates[variant, 1], rates[variant, 2]
        scaling = statistics.median(b / a for a, b in zip(one, two, strict=True))
        print(f"  {variant:20s} {statistics.median(one):8.1f} {statistics.median(two):8.1f}  {scaling:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["cnn", "gpt"], choices=["cnn", "gpt"])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, lightning {L.__version__}, {os.cpu_count()} cores")
    for name in arguments.only:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
