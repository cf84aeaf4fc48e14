"""How long a training step is held up by a checkpoint: saved at once, by Lightning's AsyncCheckpointIO, or lazily.

One network (100M parameters with AdamW's moments: 1.2 GB) makes the same steps with each, in turn, in one process, and
saves every few steps. Held up is the time within the call that saves and within those that wait for copies or for the
file before; the time of all steps is compared with that of steps that save nothing, because work in the background
takes processor time from them.

    python benchmarks/checkpoints.py [--rounds 5] [--steps 10] [--every 5] [--layers 6] [--folder .]
"""

import argparse
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leyden.callbacks import LazyCheckpointing
from leyden.plugins import AtomicCheckpointIO, LazyAsyncCheckpointIO

WIDTH = 4096


class Wide(LightningModule):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


class Clock(Callback):
    """Saves every few steps; times the steps, and the calls that save."""

    def __init__(self, every: int, path: Path) -> None:
        self.every, self.path = every, path
        self.saves: list[float] = []
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:  # the first one makes the optimizer's states
            self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every and batch_idx % self.every == 1:
            began = time.perf_counter()
            trainer.save_checkpoint(self.path)
            self.saves.append(time.perf_counter() - began)
        self.seconds = time.perf_counter() - self.began if batch_idx else 0.0


def train(model: Wide, name: str, steps: int, every: int, folder: Path) -> tuple[float, float]:
    """Returns seconds that one checkpoint held training up, and the seconds of all steps."""
    plugins: dict[str, CheckpointIO] = {
        "torch.save": TorchCheckpointIO(),
        "AtomicCheckpointIO": AtomicCheckpointIO(),
        "AsyncCheckpointIO (Lightning)": AsyncCheckpointIO(),
        "LazyAsyncCheckpointIO": LazyAsyncCheckpointIO(),
        "LazyAsyncCheckpointIO + LazyCheckpointing": LazyAsyncCheckpointIO(),
        "no checkpoints": TorchCheckpointIO(),
    }
    clock = Clock(0 if name == "no checkpoints" else every, folder / "last.ckpt")
    lazy = LazyCheckpointing()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[clock, *([lazy] if "+" in name else [])],
        plugins=[plugins[name]],
        max_steps=1 + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    inside: dict[str, float] = {}
    if "+" in name:  # the wait at the end of the fit is none of a step
        lazy.on_train_end = lambda *_: inside.update(stall=lazy.stall_seconds)  # type: ignore[method-assign]
    trainer.fit(model, DataLoader(torch.ones(1 + steps, 8, WIDTH), batch_size=None))
    held = sum(clock.saves) + inside.get("stall", 0.0)
    return held / max(len(clock.saves), 1), clock.seconds


def main() -> None:
    """Runs the variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--folder", default=None, help="where to write; a temporary folder if left out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names = [
        "no checkpoints",
        "torch.save",
        "AtomicCheckpointIO",
        "AsyncCheckpointIO (Lightning)",
        "LazyAsyncCheckpointIO",
        "LazyAsyncCheckpointIO + LazyCheckpointing",
    ]
    model = Wide(arguments.layers)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    held: dict[str, list[float]] = {name: [] for name in names}
    whole: dict[str, list[float]] = {name: [] for name in names}
    try:
        for _ in range(arguments.rounds):
            for name in names:
                one, seconds = train(model, name, arguments.steps, arguments.every, folder)
                held[name].append(one)
                whole[name].append(seconds)
    finally:
        shutil.rmtree(folder)
    plain = statistics.median(whole["no checkpoints"]) / arguments.steps
    print(f"a step without checkpoints: {plain:.2f} s; medians of {arguments.rounds} rounds")
    print(f"{'':44} held up per checkpoint   to AtomicCheckpointIO   all steps, to no checkpoints")
    for name in names[1:]:
        ratio = statistics.median(x / y for x, y in zip(held[name], held["AtomicCheckpointIO"], strict=True))
        total = statistics.median(x / y for x, y in zip(whole[name], whole["no checkpoints"], strict=True))
        print(f"{name:44} {statistics.median(held[name]):18.3f} s {ratio:18.3f} {total:24.2f}")


if __name__ == "__main__":
    main()
