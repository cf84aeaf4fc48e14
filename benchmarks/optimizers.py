"""Time of an optimizer step over its floor: the bytes that it cannot avoid, at the bandwidth of this machine.

A step has to read parameter, gradient and state once, and to write parameter and state once. The bandwidth is that of
``a += b``, which reads two words and writes one, over tensors of the same shapes. 25 million parameters in 88 tensors,
float32; all are timed in turn, round by round, on a CPU by the time that the process has it. timm and pytorch_optimizer
take part where they are installed. Root has no place here: its matrix products, not its bytes, take the time.

    python benchmarks/optimizers.py [--rounds 15] [--threads 1] [--device cpu] [--only Lamb]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from leyden.optim import SPAM, Lamb, Lars, Sophia, StableSPAM

SHAPES = [(752, 752), (752,)] * 44
NUMBERS = sum(torch.Size(shape).numel() for shape in SHAPES)
# words that a step reads and writes: parameter and gradient read, parameter written, state read and written
WORDS = {"AdamW": 7, "Lamb": 7, "Lars": 5, "Sophia": 6, "SPAM": 7, "StableSPAM": 7}
OURS = {"Lamb": Lamb, "Lars": Lars, "Sophia": Sophia, "SPAM": SPAM, "StableSPAM": StableSPAM}
PEERS = [
    ("timm", "timm.optim", "Lamb", "Lamb"),
    ("timm", "timm.optim", "Lars", "Lars"),
    ("pytorch_optimizer", "pytorch_optimizer", "Lamb", "Lamb"),
    ("pytorch_optimizer", "pytorch_optimizer", "LARS", "Lars"),
    ("pytorch_optimizer", "pytorch_optimizer", "SophiaH", "Sophia"),
    ("pytorch_optimizer", "pytorch_optimizer", "SPAM", "SPAM"),
    ("pytorch_optimizer", "pytorch_optimizer", "StableSPAM", "StableSPAM"),
]


def makers() -> dict[tuple[str, str], Callable[[list[Parameter]], Any]]:
    """What makes each optimizer, by (method, library)."""
    found: dict[tuple[str, str], Callable[[list[Parameter]], Any]] = {
        ("AdamW", "torch, fused"): partial(torch.optim.AdamW, lr=1e-6, fused=True),
        ("AdamW", "torch, foreach"): partial(torch.optim.AdamW, lr=1e-6, foreach=True),
        **{(name, "leyden"): partial(kind, lr=1e-6, weight_decay=0.1) for name, kind in OURS.items()},
    }
    for library, module, name, method in PEERS:
        try:
            kind = getattr(import_module(module), name)
        except ImportError:
            continue
        more = {"update_period": 10**9} if name == "SophiaH" else {}  # its step alone, without estimates
        found[method, library] = partial(kind, lr=1e-6, weight_decay=0.1, **more)
    return found


def tensors(device: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in SHAPES]


def seconds(step: Callable[[], Any], device: str) -> float:
    if device == "cpu":  # its own time, so that others on the machine count less
        start = time.process_time()
        step()
        return (time.process_time() - start) / torch.get_num_threads()
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", help="methods, such as Lamb")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    device = arguments.device
    params = [Parameter(tensor) for tensor in tensors(device, 0)]
    for p, grad in zip(params, tensors(device, 1), strict=True):
        p.grad = grad
    steps = {}
    for key, make in makers().items():
        if arguments.only and key[0] not in arguments.only:
            continue
        optimizer = make(params)
        # the first step makes the state; that of the peer's Sophia wants an estimate
        first = {"hessian": [torch.ones_like(p) for p in params]} if key == ("Sophia", "pytorch_optimizer") else {}
        optimizer.step(**first)
        steps[key] = optimizer.step
    left, right = (tensors(device, seed) for seed in (2, 3))

    def add() -> None:
        for a, b in zip(left, right, strict=True):
            a.add_(b)

    add()
    times: dict[Any, list[float]] = {"add": [], **{key: [] for key in steps}}
    for _ in range(arguments.rounds):
        times["add"].append(seconds(add, device))
        for key, step in steps.items():
            times[key].append(seconds(step, device))
    word = min(times["add"]) / (3 * NUMBERS)
    print(
        f"{NUMBERS / 1e6:.1f}M parameters in {len(SHAPES)} tensors on {device}, {arguments.threads} threads, ", end=""
    )
    print(f"{arguments.rounds} rounds; {4e-9 / word:.1f} GB/s")
    print(f"{'':32}{'best':>10}{'median':>10}{'floor':>10}{'best/floor':>12}{'median/floor':>14}")
    for (method, library), values in ((key, times[key]) for key in steps):
        floor = WORDS[method] * NUMBERS * word
        best, median = min(values), statistics.median(values)
        row = (
            f"{best * 1e3:8.1f}ms{median * 1e3:8.1f}ms{floor * 1e3:8.1f}ms{best / floor:11.2f}x{median / floor:13.2f}x"
        )
        print(f"{method + ' (' + library + ')':32}{row}")


if __name__ == "__main__":
    main()
