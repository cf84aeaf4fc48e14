"""Selection inside of a batch (`leyden.callbacks.CoLM`, `leyden.callbacks.UDS`) against random samples and all of them.

Every arm makes as many optimizer steps. Printed are loss and accuracy of the validation set; how far the gradient of
the chosen samples is from that of the whole batch, relative to its length (mean over every tenth step), beside as many
random samples of the same batch; the share of the samples that is trained on; and the share of the step's time that the
selection takes, its passes through the network included.

A second table has coresets alone, of the gradients of an MLP's last layer: the error of the mean over their samples,
and of the mean by how many samples each stands for, beside random samples.

    python benchmarks/batch_selection.py [--seeds 3]
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from leyden.callbacks import UDS, CoLM, coreset_by_source
from leyden.core import Batch, Method, MethodCallback
from leyden.data import DataModule, DigitMixture, Digits, PydocTopics, TensorDictDataset
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, MLP
from leyden.optim import WarmupCosine

COPIED = 20  # images


class CopiedDigits(Digits):
    """Digits of which 30 % are copies of a few images; ``copied`` says which."""

    def datasets(self) -> dict[str, Dataset]:
        """Returns the three parts."""
        parts = super().datasets()
        tensors = cast(TensorDictDataset, parts["train"]).tensors
        size = len(tensors["target"])
        rows = torch.arange(size)
        copies = rows >= round(0.7 * size)
        rows[copies] %= COPIED
        parts["train"] = TensorDictDataset({k: v[rows] for k, v in tensors.items()} | {"copied": copies})
        return parts


class Before(MethodCallback):
    """Stands before the selection: notes batch and time."""

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Notes them."""
        self.batch, self.begin = batch, time.perf_counter()
        return batch


class After(MethodCallback):
    """Stands behind it: measures."""

    def __init__(self, before: Before) -> None:
        self.before = before
        self.selecting = self.stepping = 0.0
        self.kept: list[float] = []
        self.copied: list[float] = []
        self.errors: list[float] = []
        self.random_errors: list[float] = []

    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Compares the gradients of chosen, random and all samples."""
        self.selecting += time.perf_counter() - self.before.begin
        whole, size = self.before.batch, len(batch["input"])
        self.kept.append(size / len(whole["input"]))
        if "copied" in batch:
            self.copied.append(batch["copied"].float().mean().item())
        if method.global_step % 10 == 0 and size < len(whole["input"]):
            generator = torch.Generator().manual_seed(method.global_step)
            rows = torch.randperm(len(whole["input"]), generator=generator)[:size]
            exact = gradient(method, whole)
            for errors, part in (
                (self.errors, batch),
                (self.random_errors, {key: value[rows] for key, value in whole.items()}),
            ):
                errors.append(((gradient(method, part) - exact).norm() / exact.norm()).item())
        self.begin = time.perf_counter()
        return batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Adds up the time of the rest of the step."""
        self.stepping += time.perf_counter() - self.begin


def gradient(method: Method, batch: Batch) -> Tensor:
    """Of the method's own loss by all weights."""
    terms = method.loss_terms(batch, method.compute(batch))
    return torch.cat([g.flatten() for g in torch.autograd.grad(terms["task"], list(method.network.parameters()))])


def train(
    make_method: Callable[[], Method], make_data: Callable[[], DataModule], selection: list[Callback], *, steps: int
) -> dict[str, float]:
    """What one run gives."""
    method, data, before = make_method(), make_data(), Before()
    after = After(before)
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    Trainer(
        max_steps=steps, callbacks=[before, *selection, after], gradient_clip_val=1.0, limit_val_batches=0, **quiet
    ).fit(method, datamodule=data)
    result = dict(Trainer(**quiet).validate(method, datamodule=data, verbose=False)[0])
    lists = {"kept": after.kept, "copied": after.copied, "error": after.errors, "random": after.random_errors}
    means = {name: statistics.mean(values) for name, values in lists.items() if values}
    return result | means | {"time": after.selecting / (after.selecting + after.stepping)}


class Coresets(MethodCallback):
    """Compares coresets of 32 with random samples, every tenth step."""

    def __init__(self) -> None:
        self.errors: list[list[float]] = []

    @torch.no_grad()
    def transform_batch(self, method: Method, batch: Batch) -> Batch:
        """Notes the errors."""
        if method.global_step % 10 == 0:
            outputs = method.compute(batch)
            assert outputs.features is not None
            slope = outputs.logits.softmax(-1) - functional.one_hot(batch["target"], 10)  # of cross entropy
            gradients = (slope.unsqueeze(2) * outputs.features.unsqueeze(1)).flatten(1)  # [N, D]
            mean, size = gradients.mean(0), len(gradients)
            rows, weights = coreset_by_source(gradients, batch["source"], 32)
            random = torch.randperm(size, generator=torch.Generator().manual_seed(method.global_step))[:32]
            estimates = [
                gradients[rows].mean(0),
                (gradients[rows] * weights.unsqueeze(1)).sum(0) / size,
                gradients[random].mean(0),
            ]
            self.errors.append([((estimate - mean).norm() / mean.norm()).item() for estimate in estimates])
        return batch


def coresets(seeds: int) -> None:
    """Prints the second table."""
    notes = Coresets()
    for seed in range(seeds):
        seed_everything(seed, verbose=False)
        train(digits_method, partial(mixture, 128), [notes], steps=300)
    print("\n| mean gradient of | error |\n| --- | --- |")
    for number, name in enumerate(("coreset", "coreset, weighted", "random samples")):
        print(f"| {name} | {statistics.mean(errors[number] for errors in notes.errors):.2f} |")


def digits_method() -> Method:
    """An MLP."""
    adam, schedule = partial(torch.optim.Adam, lr=1e-2), partial(WarmupCosine, warmup=0.05)
    return Classification(MLP(64, 10, (64,)), optimizer=adam, scheduler=schedule)


def text_method() -> Method:
    """A small GPT."""
    optimizer = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    network = GPT(256, 32, dim=64, depth=2, num_heads=4)
    return LanguageModeling(network, optimizer=optimizer, scheduler=partial(WarmupCosine, min_lr_ratio=0.1))


def mixture(batch_size: int) -> DataModule:
    """Digits from three sources; validation is of the smallest."""
    return DigitMixture(batch_size=batch_size, eval_batch_size=360, eval_source=2)


def copied(batch_size: int) -> DataModule:
    """Digits with copies."""
    return CopiedDigits(batch_size=batch_size, eval_batch_size=360)


def texts(batch_size: int) -> DataModule:
    """Help texts."""
    return PydocTopics(context=32, batch_size=batch_size, eval_batch_size=256)


def main() -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    colm = partial(CoLM, 0.25, dim=64, parameter="head.weight")
    uds = partial(UDS, 8, rows=1, cols=32, max_length=1, memory=256)
    text_uds = partial(UDS, 8, memory=256, max_length=32)
    tables: dict[str, tuple[Callable, Callable, int, list[tuple[str, int, Callable | None]]]] = {
        "digits of three sources": (
            digits_method,
            mixture,
            300,
            [
                ("random 32", 32, None),
                ("all 128", 128, None),
                ("CoLM, 32 of 128", 128, partial(colm, "auto")),
                ("CoLM, exact gradient", 128, partial(colm, "auto", gradient="exact")),
                ("CoLM, no source kept", 128, colm),
            ],
        ),
        "digits, 30 % copies": (
            digits_method,
            copied,
            300,
            [
                ("random 8", 8, None),
                ("all 32", 32, None),
                *[(f"UDS, 8 of 32, alpha {alpha:g}", 32, partial(uds, alpha)) for alpha in (0.0, 0.1, 1.0)],
            ],
        ),
        "texts": (
            text_method,
            texts,
            200,
            [
                ("random 8", 8, None),
                ("all 32", 32, None),
                *[(f"UDS, 8 of 32, alpha {alpha:g}", 32, partial(text_uds, alpha)) for alpha in (0.0, 2.5e-3, 1.0)],
            ],
        ),
    }
    print(
        "| data | trained on | loss | accuracy, % | gradient error | of random ones | copies, % | kept, % | time, % |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for title, (make_method, make_data, steps, arms) in tables.items():
        for name, batch_size, make in arms:
            runs = []
            for seed in range(arguments.seeds):
                seed_everything(seed, verbose=False)
                runs.append(train(make_method, partial(make_data, batch_size), [make()] if make else [], steps=steps))
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
            spread = statistics.stdev(run["val/loss"] for run in runs)
            cells = [title, name, f"{mean['val/loss']:.3f} ± {spread:.3f}"]
            cells += [_cell(mean, key, factor) for key, factor in _COLUMNS]
            print("| " + " | ".join(cells) + " |", flush=True)
    coresets(arguments.seeds)


_COLUMNS = (
    ("val/accuracy", 100.0),
    ("error", 1.0),
    ("random", 1.0),
    ("copied", 100.0),
    ("kept", 100.0),
    ("time", 100.0),
)


def _cell(mean: dict[str, float], key: str, factor: float) -> str:
    if key not in mean or (key == "time" and mean["kept"] == 1.0):
        return ""
    return f"{factor * mean[key]:.2f}" if factor == 1.0 else f"{factor * mean[key]:.1f}"


if __name__ == "__main__":
    main()
