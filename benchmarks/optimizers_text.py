"""Steps that optimizers need to reach AdamW's last loss: a byte-level GPT of 1M parameters on Python's help texts.

Each optimizer has the best of the same learning rates by the validation loss at the end of seed 0; what is printed is
the loss of test windows, for every seed, and the first step (of those that are tested, every 10th) at which that is at
most AdamW's after its last step, with the same seed. All have a linear warm-up and half a cosine down, a decay of 0.1,
and gradients clipped to a norm of 1, except that Stable-SPAM, which evens out norms itself, is not clipped. With
``spikes`` every 50th step has shuffled targets and 100 times the loss; nothing is clipped then.

    python benchmarks/optimizers_text.py [--steps 200] [--seeds 3] [--rates 5e-4 1.5e-3 5e-3 1.5e-2]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from leyden.core import make_optimizer
from leyden.data import PydocTopics
from leyden.models import GPT
from leyden.optim import Root, Sophia, StableSPAM, WarmupCosine, gnb_labels

CONTEXT, BATCH, EVERY = 64, 8, 10
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamW": partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1),
    "Sophia": partial(Sophia, rho=2.0, weight_decay=0.1),
    "Root": partial(Root, weight_decay=0.1),
    "StableSPAM": partial(StableSPAM, weight_decay=0.1),
}


def loss_of(network: GPT, windows: dict[str, Tensor]) -> Tensor:
    return functional.cross_entropy(network(windows["input"]).flatten(0, 1), windows["target"].flatten())


def run(name: str, lr: float, seed: int, steps: int, *, spikes: bool) -> tuple[float, dict[int, float]]:
    """Trains; returns the last validation loss, and the test loss after every tenth step."""
    torch.manual_seed(seed)
    network = GPT(256, CONTEXT, dim=128, depth=5, num_heads=4)
    data = PydocTopics(context=CONTEXT)
    parts = {split: data.dataset(split) for split in ("train", "val", "test")}
    generator = torch.Generator().manual_seed(seed)
    held_out = {
        split: parts[split].__getitems__(list(range(0, len(parts[split]), len(parts[split]) // 24)))
        for split in ("val", "test")
    }
    patterns = {"*embedding*": {"orthogonalize": False}} if name == "Root" else {}
    optimizer = make_optimizer(partial(OPTIMIZERS[name], lr=lr), {"network": network}, patterns)
    schedule = WarmupCosine(optimizer, total_steps=steps)
    curve = {}
    for step in range(1, steps + 1):
        rows = torch.randint(len(parts["train"]), (BATCH,), generator=generator).tolist()
        batch = parts["train"].__getitems__(rows)
        scale = 1.0
        if spikes and step % 50 == 0:
            batch["target"], scale = batch["target"].roll(1, 0), 100.0
        (scale * loss_of(network, batch)).backward()
        if not spikes and name != "StableSPAM":
            clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if name == "Sophia" and step % 10 == 0:
            logits = network(batch["input"])
            functional.cross_entropy(logits.flatten(0, 1), gnb_labels(logits, generator).flatten()).backward()
            clip_grad_norm_(network.parameters(), 1.0)
            optimizer.update_hessian(batch_size=BATCH * CONTEXT)
            optimizer.zero_grad()
        if step % EVERY == 0:
            with torch.no_grad():
                curve[step] = loss_of(network, held_out["test"]).item()
    with torch.no_grad():
        return loss_of(network, held_out["val"]).item(), curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1.5e-3, 5e-3, 1.5e-2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parameters = sum(p.numel() for p in GPT(256, CONTEXT, dim=128, depth=5, num_heads=4).parameters())
    print(f"{parameters:,} parameters, {arguments.steps} steps of {BATCH * CONTEXT} bytes", flush=True)
    for spikes in (False, True):
        goals: list[float] = []
        for name in ("AdamW", "StableSPAM") if spikes else OPTIMIZERS:
            start = time.process_time()
            tried = {lr: run(name, lr, 0, arguments.steps, spikes=spikes) for lr in arguments.rates}
            lr = min(tried, key=lambda lr: (tried[lr][0] != tried[lr][0], tried[lr][0]))  # NaN comes last
            others = [run(name, lr, seed, arguments.steps, spikes=spikes)[1] for seed in range(1, arguments.seeds)]
            curves = [tried[lr][1], *others]
            finals = [curve[max(curve)] for curve in curves]
            goals = goals or finals
            reached = [
                next((step for step, loss in curve.items() if loss <= goal), None)
                for curve, goal in zip(curves, goals, strict=True)
            ]
            label = f"{name}{', spikes' if spikes else ''}"
            validation = " ".join(f"{rate:g}: {loss:.3f}" for rate, (loss, _) in tried.items())
            print(f"{label:20} lr {lr:g} ({validation}); test loss {statistics.mean(finals):.3f}", end="")
            print(f" ({' '.join(f'{final:.3f}' for final in finals)}); AdamW's reached at {reached}", end="")
            print(f"; {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
