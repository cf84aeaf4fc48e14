"""What each regularizer of the catalog costs: CPU time of a training step, and peak memory, against its baseline.

Every experiment and its baseline make the same number of steps, in turn, each run in a process of its own that is
forked from this one; a step lasts from the batch's arrival until the callbacks are done with it. Printed are medians
over the rounds of the ratios within a round. One thread.

    python benchmarks/regularizer_cost.py [--rounds 3] [--steps 40] [--only saf elr ...]
"""

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from leyden.catalog.papers import read_papers
from leyden.cli import main as leyden

WARM_UP = 25  # steps that are not timed: optimizers make their states, memories of samples fill
ACTIVE = {  # what starts after some epochs starts with the second
    "regularization/saf": ["--trainer.callbacks.SAF.delay=1", "--trainer.callbacks.SAF.start_epoch=0"],
    "regularization/mesa": ["--trainer.callbacks.MESA.start_epoch=0"],
    "regularization/depict": ["--model.pretrain=0.001", "--model.initialize=0"],
}


class StepClock(Callback):
    """Notes the CPU seconds of each step."""

    seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.began = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        StepClock.seconds.append(time.process_time() - self.began)


def fit(experiment: str, steps: int, connection: Connection) -> None:
    """Trains in this process; sends the median seconds of a step and the peak of memory in MB."""
    from regularizer_cost import StepClock as Imported  # the class that the config names, not that of __main__

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "disabled"
    arguments = [
        "fit",
        "-c",
        experiment,
        "--name=cost",
        "--test_after_fit=false",
        f"--trainer.max_steps={WARM_UP + steps}",
        "--trainer.max_epochs=1000",
        "--trainer.limit_val_batches=0",
        "--trainer.callbacks.ProgressBar=null",
        "--trainer.logger.WandbLogger=null",
        "--trainer.callbacks+=regularizer_cost.StepClock",
        "--data.num_workers=0",
        *ACTIVE.get(experiment, ()),
    ]
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = leyden(arguments)
        os.chdir("/")
    if code:
        connection.send(output.getvalue().strip().splitlines()[-1])
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send((statistics.median(Imported.seconds[WARM_UP:]), memory))


def measure(experiment: str, steps: int) -> tuple[float, float] | str:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=fit, args=(experiment, steps, there))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        result = "it died"
    process.join()
    return result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", help="names of papers; all regularizers if left out")
    arguments = parser.parse_args()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    print("| experiment | baseline | step, ms | of the baseline, ms | ratio | memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for paper in read_papers():
        if paper.family != "regularization" or (arguments.only and paper.slug not in arguments.only):
            continue
        for comparison in paper.comparisons:
            rounds = [
                (measure(comparison.baseline, arguments.steps), measure(comparison.experiment, arguments.steps))
                for _ in range(arguments.rounds)
            ]
            name, baseline = (x.removeprefix("regularization/") for x in (comparison.experiment, comparison.baseline))
            if failed := next((result for pair in rounds for result in pair if isinstance(result, str)), None):
                print(f"| {name} | {baseline} | {failed} | | | |", flush=True)
                continue
            ratio = statistics.median(method[0] / plain[0] for plain, method in rounds)  # type: ignore[operator]
            memory = statistics.median(method[1] / plain[1] for plain, method in rounds)  # type: ignore[operator]
            plain, method = (1e3 * statistics.median(pair[side][0] for pair in rounds) for side in (0, 1))  # type: ignore[misc]
            print(f"| {name} | {baseline} | {method:.2f} | {plain:.2f} | {ratio:.2f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
