"""Accuracy on digits when 40 % of the training labels are false: methods in the same seeds, against plain training.

Each fit is an experiment of ``configs/experiment/regularization/``; the test, on true labels, is of the last weights.

    python benchmarks/label_noise.py --seeds 5 --output docs/benchmarks/label_noise.md
"""

import argparse
import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

from leyden.analysis import paired_difference
from leyden.cli import main as leyden

QUIET = [
    "--trainer.logger=[{class_path: leyden.plugins.CSVLogger}]",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.accelerator=cpu",
]
MLP = "{class_path: leyden.models.MLP, init_args: {in_features: 64, num_outputs: 10, hidden: [256, 256]}}"
MIXUP = "{class_path: leyden.callbacks.Mixup}"
DECOUPLED = "{class_path: leyden.callbacks.DecoupledMixup, init_args: {eta: 1.0}}"
# name: experiment, and its arguments
METHODS: dict[str, tuple[str, list[str]]] = {
    "plain": ("noisy_digits", []),
    "saf": ("saf", []),
    "elr": ("elr", []),
    "nested_dropout": ("nested_dropout", []),
    **{
        f"nested_dropout, tested with {keep} of 256 features": ("nested_dropout", [f"--model.network.keep={keep}"])
        for keep in (5, 10, 40, 256)
    },
    "co-teaching alone": ("nested_co_teaching", [f"--model.network={MLP}", f"--model.second_network={MLP}"]),
    "nested_dropout with co-teaching": ("nested_co_teaching", []),
    "nested_dropout with co-teaching, on whole batches": ("nested_co_teaching", ["--model.split=false"]),
    "mixup": ("noisy_digits", [f"--trainer.callbacks+=[{MIXUP}]"]),
    "decoupled_mixup": ("noisy_digits", [f"--trainer.callbacks+=[{MIXUP}, {DECOUPLED}]"]),
}
MARK = "<!-- made by benchmarks/label_noise.py -->"


def accuracy(experiment: str, arguments: list[str], seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        command = ["fit", "-c", f"regularization/{experiment}", f"--seed_everything={seed}", "--name=run", *QUIET]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = leyden([*command, *arguments])
        if code:
            raise RuntimeError(f"{experiment} {' '.join(arguments)}: {errors.getvalue()[-500:]}")
        (path,) = Path("logs").rglob("metrics.csv")
        with open(path, newline="") as file:
            return next(float(row["test/accuracy"]) for row in csv.DictReader(file) if row.get("test/accuracy"))


def table(seeds: int, done: Path) -> str:
    """Runs what is not in the file ``done`` yet, and returns the table."""
    results: dict[str, list[float]] = json.loads(done.read_text()) if done.exists() else {}
    lines = ["| method | test accuracy | difference |", "| --- | --- | --- |"]
    for name, (experiment, arguments) in METHODS.items():
        values = results.setdefault(name, [])
        for seed in range(len(values), seeds):
            values.append(accuracy(experiment, arguments, seed))
            done.write_text(json.dumps(results, indent=1))
            print(f"{name}, seed {seed}: {values[-1]:.4f}", flush=True)
        found = paired_difference(results["plain"][:seeds], values[:seeds])
        difference = ""
        if name != "plain":
            difference = f"{100 * found.mean:+.1f}"
            if found.interval is not None:
                difference += f" [{100 * found.interval[0]:+.1f}, {100 * found.interval[1]:+.1f}]"
        lines.append(f"| {name} | {100 * sum(values[:seeds]) / seeds:.1f} | {difference} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file whose table is replaced; printed alone if left out")
    parser.add_argument(
        "--done", type=Path, default=Path("logs/label_noise.json"), help="results so far, to go on from"
    )
    arguments = parser.parse_args()
    arguments.done.parent.mkdir(parents=True, exist_ok=True)
    text = table(arguments.seeds, arguments.done.resolve())
    print(text)
    if arguments.output is not None:
        before, _, _ = arguments.output.read_text().partition(MARK)
        arguments.output.write_text(before + MARK + "\n\n" + text)


if __name__ == "__main__":
    main()
