"""Tokens per second and MFU of GPT-2 (124M) on one GPU: Leyden, plain Lightning, and a hand-written loop.

bfloat16 autocast and a compiled network, AdamW fused or foreach, random tokens that lie on the device. A token takes
6 N + 12 L D T floating point operations (N parameters without positions; A. Chowdhery et al., "PaLM", 2022, appendix
B); MFU is the share that is reached of the speed of this very card in a large bfloat16 matrix product, which is
measured before. All variants run in one process, in turn; each starts from the same weights.

    python benchmarks/gpu_lm.py [--rounds 3] [--steps 30] [--batch_size 16] [--no-compile]
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from functools import partial

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from leyden.callbacks import EMA, ExactResume
from leyden.core import Batch
from leyden.data import DataModule
from leyden.methods import LanguageModeling
from leyden.models import GPT

VOCAB = 50_304  # GPT-2's 50,257, padded to a multiple of 128
WARM_UP = 10
SIZES = {"124m": {"dim": 768, "depth": 12, "num_heads": 12}, "tiny": {"dim": 64, "depth": 2, "num_heads": 2}}


class Tokens(Dataset):
    """The same random tokens in every batch, on the device: loading is not what is measured."""

    def __init__(self, batch_size: int, context: int, device: torch.device) -> None:
        self.tokens = torch.randint(VOCAB, (batch_size, context + 1), device=device)

    def __len__(self) -> int:
        return 1_000_000

    def __getitems__(self, indices: list[int]) -> Batch:
        return {"input": self.tokens[:, :-1], "target": self.tokens[:, 1:]}


class Data(DataModule):
    def __init__(self, tokens: Tokens, batch_size: int) -> None:
        super().__init__(batch_size)
        self.tokens = tokens

    def datasets(self) -> dict[str, Dataset]:
        return {"train": self.tokens}


class Plain(L.LightningModule):
    def __init__(self, network: nn.Module, optimizer: partial) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Clock(L.Callback):
    """Seconds of the steps behind the warm-up."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step in (WARM_UP, WARM_UP + self.steps):
            wait()
            now = time.perf_counter()
            self.seconds = now - self.start if trainer.global_step > WARM_UP else 0.0
            self.start = now


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loss_of(network: nn.Module, batch: Batch) -> Tensor:
    logits = network(batch["input"])
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch["target"].flatten())


def peak_flops(device: torch.device) -> float:
    """Floating point operations per second of a large product in bfloat16: the best of 5 times 20."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        wait()
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        wait()
        seconds.append(time.perf_counter() - start)
    return 20 * 2 * size**3 / min(seconds[1:])


def by_hand(network: nn.Module, tokens: Tokens, optimizer: partial, steps: int) -> float:
    step = optimizer(network.parameters())
    network.train()
    batch = tokens.__getitems__([])
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            wait()
            start = time.perf_counter()
        step.zero_grad()
        with torch.autocast(tokens.tokens.device.type, torch.bfloat16):
            loss = loss_of(network, batch)
        loss.backward()
        step.step()
    wait()
    return time.perf_counter() - start


def by_lightning(
    network: nn.Module, tokens: Tokens, optimizer: partial, steps: int, *, leyden: bool, callbacks: list[L.Callback]
) -> float:
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=WARM_UP + steps,
            accelerator=tokens.tokens.device.type,
            devices=1,
            precision="bf16-mixed",
            callbacks=[*callbacks, clock],
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        batch_size = len(tokens.tokens)
        if leyden:
            trainer.fit(LanguageModeling(network, optimizer=optimizer), Data(tokens, batch_size))
        else:
            trainer.fit(Plain(network, optimizer), DataLoader(tokens, batch_size, collate_fn=lambda batch: batch))
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--size", choices=SIZES, default="124m")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, context = SIZES[arguments.size], arguments.context
    tokens = Tokens(arguments.batch_size, context, device)

    def network() -> GPT:
        torch.manual_seed(0)
        made = GPT(VOCAB, context, **shape).to(device)
        if arguments.compile:
            made.compile()
        return made

    fused, foreach = (partial(torch.optim.AdamW, lr=1e-4, **{kind: True}) for kind in ("fused", "foreach"))
    lightning = partial(by_lightning, tokens=tokens, steps=arguments.steps)
    variants = {
        "hand-written loop, fused": lambda: by_hand(network(), tokens, fused, arguments.steps),
        "hand-written loop, foreach": lambda: by_hand(network(), tokens, foreach, arguments.steps),
        "Lightning, fused": lambda: lightning(network(), optimizer=fused, leyden=False, callbacks=[]),
        "Leyden, fused": lambda: lightning(network(), optimizer=fused, leyden=True, callbacks=[]),
        "Leyden, fused, EMA": lambda: lightning(
            network(), optimizer=fused, leyden=True, callbacks=[ExactResume(), EMA(0.999)]
        ),
    }
    parameters = sum(p.numel() for p in network().parameters()) - context * shape["dim"]
    per_token = 6 * parameters + 12 * shape["depth"] * shape["dim"] * context
    peak = peak_flops(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, lightning {L.__version__}, {name}: {peak / 1e12:.1f} TFLOP/s in bfloat16")
    print(f"{parameters:,} parameters, batch {arguments.batch_size} x {context}, compiled: {arguments.compile}")
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(arguments.rounds):
        for variant, run in variants.items():
            rates[variant].append(arguments.steps * tokens.tokens[:, 1:].numel() / run())
            torch.compiler.reset()
    hand = rates["hand-written loop, fused"]
    for variant, rate in rates.items():
        ratio = statistics.median(r / h for r, h in zip(rate, hand, strict=True))
        median = statistics.median(rate)
        print(f"  {variant:28s} {median:12,.0f} tokens/s  MFU {per_token * median / peak:6.1%}  {ratio:5.2f}x")


if __name__ == "__main__":
    main()
