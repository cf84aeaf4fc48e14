"""Accuracy of sparse networks on digits: methods and patterns in the same seeds, against dense and one-shot pruning.

Each fit is an experiment of ``configs/experiment/optimization/`` with another pattern; the test is of the last weights.

    python benchmarks/sparsity.py --seeds 5 --output docs/benchmarks/sparsity.md
"""

import argparse
import contextlib
import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from leyden.analysis import paired_difference
from leyden.cli import main as leyden
from leyden.nn import iso_flop_width

Arguments = list[str]
CALLBACKS = "--trainer.callbacks."
QUIET = [
    "--trainer.logger=[{class_path: leyden.plugins.CSVLogger}]",
    f"{CALLBACKS}ProgressBar=null",
    "--trainer.accelerator=cpu",
    "--trainer.check_val_every_n_epoch=20",
]


def nm(callback: str) -> Callable[[int, int], Arguments]:
    return lambda n, m: [f"{CALLBACKS}{callback}.n={n}", f"{CALLBACKS}{callback}.m={m}"]


def share(callback: str) -> Callable[[int, int], Arguments]:
    return lambda n, m: [f"{CALLBACKS}{callback}.sparsity=[{n},{m}]"]


def progressive(n: int, m: int) -> Arguments:
    added = f"[{{class_path: leyden.callbacks.ProgressiveNM, init_args: {{n: {n}, m: {m}}}}}]"
    return [f"--trainer.callbacks+={added}"]


# name: experiment, and its arguments for n of m
METHODS: dict[str, tuple[str, Callable[[int, int], Arguments]]] = {
    "one-shot magnitude": ("digits_mlp_1to8", share("OneShotPruning")),
    "one-shot Wanda": ("digits_mlp_wanda", share("DSnoT")),
    "dsnot": ("dsnot", share("DSnoT")),
    "essential_sparsity (any place, as many zeros)": (
        "essential_sparsity",
        lambda n, m: [f"{CALLBACKS}OneShotPruning.sparsity={1 - n / m}"],
    ),
    "straight-through": ("sr_ste", lambda n, m: [*nm("NMSparsity")(n, m), f"{CALLBACKS}NMSparsity.decay=0"]),
    "sr_ste": ("sr_ste", nm("NMSparsity")),
    "progressive_gradient_flow": ("digits_mlp", progressive),
    "cast": (
        "cast",
        lambda n, m: [*nm("CAST")(n, m), f"--model.optimizer.n={n}", f"--model.optimizer.m={m}"],
    ),
}
PATTERNS = [(2, 4), (1, 4), (1, 8)]
MARK = "<!-- made by benchmarks/sparsity.py -->"


def accuracy(experiment: str, arguments: Arguments, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        command = ["fit", "-c", f"optimization/{experiment}", f"--seed_everything={seed}", "--name=run", *QUIET]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = leyden([*command, *arguments])
        if code:
            raise RuntimeError(f"{experiment} {' '.join(arguments)}: {errors.getvalue()[-500:]}")
        (path,) = Path("logs").rglob("metrics.csv")
        with open(path, newline="") as file:
            return next(float(row["test/accuracy"]) for row in csv.DictReader(file) if row.get("test/accuracy"))


def sparse_ift(n: int, m: int) -> Arguments:
    """As many multiplications in the hidden layers as the dense network of width 32, by a wider one."""
    width = round(32 * iso_flop_width(1.0 - n / m))
    return [f"--model.network.hidden=[{width},{width}]", f"{CALLBACKS}DynamicSparsity.sparsity={1 - n / m}"]


def difference(baseline: list[float], values: list[float]) -> str:
    found = paired_difference(baseline, values)
    if found.interval is None:
        return f"{100 * found.mean:+.1f}"
    return f"{100 * found.mean:+.1f} [{100 * found.interval[0]:+.1f}, {100 * found.interval[1]:+.1f}]"


def table(seeds: int, done: Path) -> str:
    """Runs what is not in the file ``done`` yet, and returns the table."""
    results: dict[str, list[float]] = json.loads(done.read_text()) if done.exists() else {}

    def measured(name: str, experiment: str, arguments: Arguments) -> list[float]:
        values = results.setdefault(name, [])
        for seed in range(len(values), seeds):
            values.append(accuracy(experiment, arguments, seed))
            done.write_text(json.dumps(results, indent=1))
            print(f"{name}, seed {seed}: {values[-1]:.4f}", flush=True)
        return values[:seeds]

    def row(name: str, cells: list[str]) -> str:
        return f"| {name} | " + " | ".join(cells) + " |"

    def mean(values: list[float]) -> float:
        return 100 * sum(values) / len(values)

    dense = measured("dense", "digits_mlp", [])
    narrow = measured("dense, width 32", "digits_mlp", ["--model.network.hidden=[32,32]"])
    lines = [row("method", [f"{n}:{m}" for n, m in PATTERNS]), row("---", ["---"] * len(PATTERNS))]
    lines.append(row("dense", [f"{mean(dense):.1f}"] * len(PATTERNS)))
    for name, (experiment, arguments) in METHODS.items():
        cells = []
        for n, m in PATTERNS:
            values = measured(f"{name} {n}:{m}", experiment, arguments(n, m))
            cells.append(f"{mean(values):.1f} ({difference(dense, values)})")
        lines.append(row(name, cells))
    lines.append(row("dense, width 32", [f"{mean(narrow):.1f}"] * len(PATTERNS)))
    cells = []
    for n, m in PATTERNS:
        values = measured(f"sparse_ift {n}:{m}", "sparse_ift", sparse_ift(n, m))
        cells.append(f"{mean(values):.1f} ({difference(narrow, values)})")
    lines.append(row("sparse_ift (against width 32)", cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file whose table is replaced; printed alone if left out")
    parser.add_argument("--done", type=Path, default=Path("logs/sparsity.json"), help="results so far, to go on from")
    arguments = parser.parse_args()
    arguments.done.parent.mkdir(parents=True, exist_ok=True)
    text = table(arguments.seeds, arguments.done.resolve())
    print(text)
    if arguments.output is not None:
        before, _, _ = arguments.output.read_text().partition(MARK)
        arguments.output.write_text(before + MARK + "\n\n" + text)


if __name__ == "__main__":
    main()
