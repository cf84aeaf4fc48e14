"""Seconds that commands take, from their start to their end: importing, parsing, and a fit of one step.

Whole processes, in turn; medians over the rounds, and of the ratio to importing Lightning in the same round. The same
network is trained on the same data by a script with a `Trainer`, by a `LightningCLI`, and by ``leyden fit``.

    python benchmarks/startup.py [--rounds 7]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = """\
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from leyden.models import ConvNet

class Plain(L.LightningModule):
    def __init__(self, lr: float = 1e-3):
        super().__init__()
        self.lr, self.network = lr, ConvNet(1, 10)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr)

class Data(L.LightningDataModule):
    def train_dataloader(self):
        from sklearn.datasets import load_digits
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        return DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)
"""
TRAINER = """\
from parts import *
L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False).fit(Plain(), Data())
"""
CLI = """\
from lightning.pytorch.cli import LightningCLI
from parts import *
LightningCLI(Plain, Data, save_config_callback=None)
"""
QUICK = ["--trainer.accelerator=cpu", "--trainer.max_steps=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp())
    for name, text in {"parts": PARTS, "by_trainer": TRAINER, "by_cli": CLI}.items():
        (folder / f"{name}.py").write_text(text)
    leyden = ["-m", "leyden.cli"]
    fit = [*leyden, "fit", *QUICK, "--test_after_fit=false"]
    commands = {
        "import lightning": ["-c", "import lightning"],
        "Trainer, 1 step": ["by_trainer.py"],
        "LightningCLI, 1 step": ["by_cli.py", "fit", *QUICK, "--trainer.logger=false"],
        "leyden fit, 1 step": [*fit, "-c", "logger/csv"],
        "leyden fit with W&B, 1 step": fit,
        "leyden --help": [*leyden, "--help"],
        "leyden check": [*leyden, "check", "supervised/digits"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
            if number:  # the first round fills the caches
                seconds[name].append(time.perf_counter() - start)
    print(f"{rounds} rounds")
    for name, taken in seconds.items():
        ratio = statistics.median(t / first for t, first in zip(taken, seconds["import lightning"], strict=True))
        print(f"  {name:30s} {statistics.median(taken):6.2f} s  {ratio:5.2f}x")


if __name__ == "__main__":
    main()
