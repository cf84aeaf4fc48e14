"""How far the learning rate of a small GPT may be off: with and without the parts that keep attention stable.

Every variant trains the byte-level GPT of ``optimization/pydoc_gpt`` at the same learning rates and in the same seeds,
with warm-up and a cosine to a tenth, and is evaluated on validation text. A variant's range is that of the rates at
which its loss, the mean over seeds, stays within 5 % of a best loss: its own, and that of the plain network. Between
two rates the loss is taken to be linear in the logarithm of the rate.

    python benchmarks/lr_sensitivity.py [--steps 150] [--seeds 3] [--variants plain kit ...] [--out FILE.json]
"""

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from leyden.analysis import lr_sensitivity
from leyden.callbacks import AuxiliaryZLoss, SigmaReparametrization
from leyden.core import MethodCallback, NonFiniteLossError
from leyden.data import PydocTopics
from leyden.methods import LanguageModeling
from leyden.models import GPT
from leyden.optim import WarmupCosine

RATES = [10.0 ** (exponent / 2) for exponent in range(-6, 2)]  # 1e-3 to 3
VARIANTS = {
    "plain": (False, False, False),
    "qk-norm and z-loss": (True, True, False),
    "SigmaReparam": (False, False, True),
    "all three": (True, True, True),
}


def train(variant: str, lr: float, seed: int, steps: int) -> tuple[float, float]:
    """Validation loss before and after training, in nats per byte."""
    qk_norm, z_loss, sigma = VARIANTS[variant]
    seed_everything(seed, verbose=False)
    callbacks: list[MethodCallback] = [AuxiliaryZLoss()] if z_loss else []
    groups = None
    if sigma:
        callbacks.append(SigmaReparametrization())
        groups = {"*.gamma": {"weight_decay": 0.0}}
    method = LanguageModeling(
        GPT(256, 64, dim=64, depth=2, num_heads=4, qk_norm=qk_norm),
        optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.1),
        scheduler=partial(WarmupCosine, warmup=0.1, min_lr_ratio=0.1),
        param_groups=groups,
    )
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 8,
        "inference_mode": False,  # the metrics of the validation before training go on in that of the fit
        "use_distributed_sampler": False,
    }
    data = PydocTopics(context=64, batch_size=16, eval_batch_size=64, seed=seed)
    trainer = Trainer(
        max_steps=steps, gradient_clip_val=1.0, callbacks=list(callbacks), limit_train_batches=steps, **quiet
    )
    before = trainer.validate(method, data, verbose=False)[0]["val/loss"]
    try:
        trainer.fit(method, data)
        return before, trainer.callback_metrics["val/loss"].item()
    except NonFiniteLossError:
        return before, math.inf


def usable_range(losses: list[float], limit: float) -> tuple[float, float]:
    """Least and largest rate, around the best, with a loss of at most ``limit``."""
    best = min(range(len(losses)), key=losses.__getitem__)
    edges = []
    for direction in (-1, 1):
        at = best
        while 0 <= at + direction < len(losses) and losses[at + direction] <= limit:
            at += direction
        edge, beyond = math.log(RATES[at]), at + direction
        if 0 <= beyond < len(losses) and math.isfinite(losses[beyond]):
            share = (limit - losses[at]) / (losses[beyond] - losses[at])
            edge += share * (math.log(RATES[beyond]) - edge)
        edges.append(math.exp(edge))
    return edges[0], edges[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    RATES[:] = arguments.rates
    print(f"torch {torch.__version__}, 1 thread, {arguments.steps} steps, {arguments.seeds} seeds", flush=True)
    result: dict[str, Any] = {"rates": RATES, "steps": arguments.steps}
    for variant in arguments.variants:
        start, losses, before = time.perf_counter(), [], 0.0
        for lr in RATES:
            runs = [train(variant, lr, seed, arguments.steps) for seed in range(arguments.seeds)]
            before = statistics.fmean(run[0] for run in runs)
            losses.append(statistics.fmean(run[1] for run in runs))
            print(
                f"{variant:20s} lr {lr:8.2g}  loss {losses[-1]:.4f}  " + " ".join(f"{r[1]:.3f}" for r in runs),
                flush=True,
            )
        low, high = usable_range(losses, 1.05 * min(losses))
        sensitivity = lr_sensitivity(torch.tensor(losses), initial_loss=before).item()
        print(
            f"{variant:20s} best {min(losses):.4f}, within 5 % from {low:.2g} to {high:.2g}: a factor of "
            f"{high / low:.1f}; sensitivity {sensitivity:.3f}; {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        result[variant] = {"losses": losses, "low": low, "high": high, "sensitivity": sensitivity}
        if "plain" in result and min(losses) < (limit := 1.05 * min(result["plain"]["losses"])):
            low, high = usable_range(losses, limit)
            print(f"{variant:20s} within 5 % of the best plain loss from {low:.2g} to {high:.2g}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
