"""Time of an update of the average of all weights: the EMA callback, Lightning's and timm's, and one `lerp_`.

All move an average of the same weights, in one process, in turn; the yardstick is a single `lerp_` over as many bytes
in one flat tensor. Printed are medians over the rounds of the ratio to it in the same round. timm's is left out where
timm is not installed.

    python benchmarks/ema.py [--rounds 21]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from leyden.callbacks import EMA

DECAY = 0.999
SIZES = {
    "1M in 620 tensors": (620, 1_000_000),
    "25M in 88 tensors": (88, 25_000_000),
    "124M in 148 tensors": (148, 124_000_000),
}


class Weights(LightningModule):
    """So many tensors of one size."""

    def __init__(self, tensors: int, numbers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(numbers // tensors) for _ in range(tensors))


def updates(module: Weights) -> dict[str, Callable[[], object]]:
    """What makes an update, by name."""
    numbers = sum(p.numel() for p in module.parameters())
    flat, average = torch.randn(numbers), torch.randn(numbers)
    callback = EMA(DECAY)
    trainer = SimpleNamespace(global_step=10_000)
    callback.on_fit_start(trainer, module)  # type: ignore[arg-type]

    def step() -> None:
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]

    # as lightning.pytorch.callbacks.EMAWeightAveraging makes and updates it
    lightning = AveragedModel(module, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True)
    found: dict[str, Callable[[], object]] = {
        "one flat lerp_": lambda: average.lerp_(flat, 1.0 - DECAY),
        "leyden.callbacks.EMA": step,
        "EMAWeightAveraging (Lightning)": lambda: lightning.update_parameters(module),
    }
    if find_spec("timm"):
        from timm.utils import ModelEmaV3

        timm = ModelEmaV3(module, decay=DECAY)
        found["ModelEmaV3 (timm)"] = lambda: timm.update(module)
    return found


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    for size, (tensors, numbers) in SIZES.items():
        made = updates(Weights(tensors, numbers))
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds + 2):
            for name, update in made.items():
                began = time.perf_counter()
                update()
                seconds[name].append(time.perf_counter() - began)
        yardstick = seconds["one flat lerp_"][2:]
        for name, all_seconds in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(all_seconds[2:], yardstick, strict=True))
            print(f"{size:20} {name:32} {1e3 * statistics.median(all_seconds[2:]):9.2f} ms {ratio:7.2f}", flush=True)


if __name__ == "__main__":
    main()
