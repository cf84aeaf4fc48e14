"""Hurts training runs again and again, and sees that they end in the bits of a run that was left alone.

    scripts/soak --minutes 30 [--seed 0] [--folder FOLDER]

A run is started, hurt at a random moment, and resumed, until it has had its faults and may end. Runs of one process
and of two take turns. After every fault all checkpoints must be whole, the command must say in a line what it met, and
the run must go on from the last step that was saved; at the end weights, optimizer, loader, random numbers and log are
those of the whole run. Prints how many faults were injected and survived, by kind; the exit code is 1 if one was not.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils._pytree import tree_flatten

from leyden.plugins import AtomicCheckpointIO, DamagedCheckpointError

FAULTS_PER_RUN = 10
HELPERS = '''\
import os, time
import torch
from leyden.core import MethodCallback

class Slow(MethodCallback):
    """Gives faults time to come, and makes the batch of one step not a number if it is asked to."""

    def transform_batch(self, method, batch):
        time.sleep(0.02)
        if method.global_step == int(os.environ.get("SOAK_NAN_STEP", -1)):
            return batch | {"input": batch["input"] * torch.nan}
        return batch
'''
FIT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=30",
    "--trainer.limit_train_batches=8",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks.LastCheckpoint.every_n_steps=3",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.callbacks.RunRecord=null",
    "--trainer.logger.WandbLogger=null",
    "--trainer.callbacks+=soak_helpers.Slow",
    "--model.network.in_channels=3",
    "--model.network.width=4",
    "--model.network.dropout=0.2",
    "--data=leyden.data.ImageFolder",
    "--data.root=pictures",
    "--data.image_size=8",
    "--data.batch_size=16",
    "--data.num_workers=1",
    "--test_after_fit=false",
]


class SurvivalError(AssertionError):
    """A run did not survive a fault."""


class Run:
    """A run in a folder, which is started, hurt and resumed.

    Args:
        folder: where commands are called.
        name: of the run.
        num_processes: of the run.
        draw: random numbers.
    """

    def __init__(self, folder: Path, name: str, num_processes: int, draw: random.Random) -> None:
        self.folder, self.name, self.num_processes, self.draw = folder, name, num_processes, draw
        self.path = folder / "logs" / "default" / name
        self.process: subprocess.Popen | None = None

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    def start(self, *more: str, limit: int | None = None, **environment: str) -> None:
        """Starts the run, or goes on with it if it has saved something; ``limit`` is the largest file in bytes."""
        saved = self.last.exists()
        resumed = [f"--resume={self.path.relative_to(self.folder)}"]
        arguments = resumed if saved else [f"--name={self.name}", *FIT, f"--trainer.devices={self.num_processes}"]
        arguments += [] if saved or self.num_processes == 1 else ["--trainer.strategy=ddp"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.num_processes}"]
        command = [sys.executable, *(launcher if self.num_processes > 1 else []), "-m", "leyden.cli", "fit"]
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.output = open(self.folder / "output.txt", "w+")  # noqa: SIM115 (closed by finish)
        self.process = subprocess.Popen(
            [*command, *arguments, *more],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"} | environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            preexec_fn=limit and (lambda: _limit_files(limit)),
        )

    def wait_for_progress(self) -> bool:
        """Waits until the run has saved something, and a random time more; False if it ends before."""
        before = _stamp(self.last)
        while _stamp(self.last) == before:
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        time.sleep(self.draw.uniform(0.0, 0.3))
        return self.process.poll() is None

    def finish(self, timeout: float = 120.0) -> tuple[int, str]:
        """Waits for the end; returns exit code and output."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise SurvivalError(f"hung for {timeout:g} s: {self._said()[-500:]}") from None
        said = self._said()
        self.output.close()
        return code, said

    def signal(self, number: int) -> None:
        """Sends a signal to all processes of the run."""
        for pid in [self.process.pid, *self.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def children(self) -> list[int]:
        """Processes that the first one started, and those that they started, the oldest first."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
        found = [self.process.pid]
        for pid in sorted(parents):
            if parents[pid] in found:
                found.append(pid)
        return found[1:]

    def check(self) -> None:
        """Sees that every published checkpoint is whole."""
        for path in self.path.glob("checkpoints/[!.]*.ckpt"):
            AtomicCheckpointIO().load_checkpoint(path)

    def _said(self) -> str:
        self.output.seek(0)
        return self.output.read()


# ---- faults: each starts the run, hurts it, and returns False if the run had ended before


def kill(run: Run) -> bool:
    """All processes are killed at a random moment, as by a loss of power or memory."""
    run.start()
    going = run.wait_for_progress()
    run.signal(signal.SIGKILL)
    run.finish()
    return going


def kill_while_saving(run: Run) -> bool:
    """They are killed in the middle of writing a checkpoint."""
    run.start()
    going = run.wait_for_progress()
    partial = run.last.with_name(".last.ckpt.partial")
    while run.process.poll() is None and not partial.exists():
        pass
    run.signal(signal.SIGKILL)
    run.finish()
    return going


def terminate(run: Run) -> bool:
    """A scheduler takes the machine away."""
    return _end_by(run, signal.SIGTERM)


def time_is_over(run: Run) -> bool:
    """A scheduler says that time is nearly over."""
    return _end_by(run, signal.SIGUSR1)


def truncate(run: Run) -> bool:
    """The last checkpoint is cut off."""

    def cut(data: bytearray) -> bytes:
        return data[: run.draw.randrange(len(data))]

    return _damage(run, cut)


def flip(run: Run) -> bool:
    """Bits of the last checkpoint change."""

    def change(data: bytearray) -> bytes:
        for _ in range(8):
            data[run.draw.randrange(len(data))] ^= 1 << run.draw.randrange(8)
        return data

    return _damage(run, change)


def full_disk(run: Run) -> bool:
    """No file can grow to the size of a checkpoint."""
    run.start(limit=run.last.stat().st_size // 2 if run.last.exists() else 20_000)
    code, said = run.finish()
    _expect(code == 1 and "could not be written: File too large" in said, code, said)
    return True


def lose_worker(run: Run) -> bool:
    """A process that loads data is killed."""
    run.start()
    going = run.wait_for_progress()
    if going and (children := run.children()):
        os.kill(children[-1], signal.SIGKILL)
        code, said = run.finish()
        _expect(code != 0 and "DataLoader worker" in said, code, said)
        return True
    run.signal(signal.SIGKILL)
    run.finish()
    return False


def not_a_number(run: Run) -> bool:
    """The data of a step are no numbers."""
    step = torch.load(run.last, weights_only=True)["global_step"] + 2 if run.last.exists() else 2
    run.start(SOAK_NAN_STEP=str(step))
    code, said = run.finish()
    if code == 0:  # the step was behind the end
        return False
    _expect(f"the loss is not finite in step {step}" in said, code, said)
    return True


def freeze(run: Run) -> bool:
    """A process stands still for two seconds, and goes on; then all are killed."""
    run.start()
    going = run.wait_for_progress()
    if going and (children := run.children()):
        os.kill(children[-1], signal.SIGSTOP)
        time.sleep(2.0)
        os.kill(children[-1], signal.SIGCONT)
        going = run.wait_for_progress()
    run.signal(signal.SIGKILL)
    run.finish()
    return going


def lose_files(run: Run) -> bool:
    """Files of the data set vanish, and are back when the run is resumed."""
    pictures = run.folder / "pictures" / str(run.draw.randrange(10))
    run.start()
    try:
        going = run.wait_for_progress()
        pictures.rename(run.folder / "vanished")
        code, said = run.finish()
    finally:
        (run.folder / "vanished").rename(pictures)
    if code != 0:
        _expect(f"error: pictures/{pictures.name}/" in said and "cannot be decoded" in said, code, said)
    return going and code != 0


def lose_server(run: Run) -> bool:
    """Nobody answers at the address of W&B: the run goes on without, until it is killed."""
    logger = (
        [] if "WandbLogger" in _text(run.path / "config.yaml") else ["--trainer.logger+=leyden.plugins.WandbLogger"]
    )
    nobody = {"WANDB_API_KEY": 40 * "0", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}
    run.start(*logger, WANDB_MODE="online", **nobody)
    going = run.wait_for_progress()
    run.signal(signal.SIGKILL)
    _, said = run.finish()
    _expect("W&B does not answer: the run is logged offline" in said, 0, said)
    return going


FAULTS = [kill, kill_while_saving, terminate, time_is_over, truncate, flip]
FAULTS += [full_disk, lose_worker, not_a_number, freeze, lose_files, lose_server]


def _end_by(run: Run, number: int) -> bool:
    run.start()
    going = run.wait_for_progress()
    if going:
        target = run.children()[0] if run.num_processes > 1 else run.process.pid  # a rank, or the only process
        os.kill(target, number)
    code, said = run.finish()
    if code != 0:
        _expect(f"{signal.Signals(number).name}: the run is saved" in said, code, said)
    return going and code != 0


def _damage(run: Run, damage: Callable[[bytearray], bytes]) -> bool:
    """Kills the run, damages its last checkpoint, and goes on from the one before if it is refused."""
    previous = run.last.with_name("previous.ckpt")
    if not kill(run) or not previous.exists():
        return False
    data = damage(bytearray(run.last.read_bytes()))
    run.last.unlink()  # previous.ckpt may be another name of the same file
    run.last.write_bytes(data)
    try:
        AtomicCheckpointIO().load_checkpoint(run.last)
    except (DamagedCheckpointError, ValueError):
        run.start()
        code, said = run.finish()
        _expect(code == 1 and "is damaged" in said and str(previous.relative_to(run.folder)) in said, code, said)
        shutil.copy(previous, run.last)
    return True


def _expect(fulfilled: bool, code: int, said: str) -> None:
    if not fulfilled:
        raise SurvivalError(f"exit code {code}: {said[-800:]}")


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


# ---- rounds


def _write_pictures(folder: Path) -> None:
    """The digits, as one file each: what vanishes is met by the next batch."""
    digits = load_digits()
    for number, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(target)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((16 * pixels).clip(max=255).astype("uint8")).save(folder / str(target) / f"{number}.png")


def _state(run: Run) -> Any:
    """All of the last checkpoint but for what names the run, and a score that is saved and never read."""
    checkpoint = torch.load(run.last, weights_only=True)
    checkpoint.pop("wandb_id", None)
    for state in checkpoint["callbacks"].values():
        state.pop("current_score", None)
    return _without_folder(checkpoint, str(run.path))


def _without_folder(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {_without_folder(key, folder): _without_folder(item, folder) for key, item in value.items()}
    return value.replace(folder, "") if isinstance(value, str) else value


def is_same(one: Run, other: Run) -> bool:
    """Whether two runs ended alike: in all of their last checkpoint, and in what was logged."""
    (leaves, structure), (others, other_structure) = (tree_flatten(_state(run)) for run in (one, other))
    if structure != other_structure:
        return False
    pairs = zip(leaves, others, strict=True)
    equal = (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
    logs = [sorted((run.path / "metrics.csv").read_text().splitlines()) for run in (one, other)]
    return all(equal) and logs[0] == logs[1]


def soak(folder: Path, *, minutes: float, seed: int, max_faults: int | None = None) -> tuple[Counter, list[str]]:
    """Hurts runs until the time is over.

    Returns:
        Number of faults that were survived, by kind; and what was not.
    """
    (folder / "soak_helpers.py").write_text(HELPERS)
    _write_pictures(folder / "pictures")
    draw = random.Random(seed)
    deadline = time.monotonic() + 60.0 * minutes
    wholes: dict[int, Run] = {}
    survived: Counter = Counter()
    failures: list[str] = []
    number = 0
    while time.monotonic() < deadline and (max_faults is None or survived.total() < max_faults):
        num_processes = 1 + number % 2
        if num_processes not in wholes:
            wholes[num_processes] = whole = Run(folder, f"whole{num_processes}", num_processes, draw)
            whole.start()
            code, said = whole.finish(600.0)
            _expect(code == 0, code, said)
        run = Run(folder, f"hurt{number}", num_processes, draw)
        number += 1
        left = FAULTS_PER_RUN if max_faults is None else min(FAULTS_PER_RUN, max_faults - survived.total())
        faults: list[str] = []
        try:
            for _ in range(left):
                fault = draw.choice(FAULTS)
                if not fault(run):
                    break  # it had ended
                faults.append(fault.__name__)
                run.check()
                if time.monotonic() > deadline:
                    break
            run.start()
            code, said = run.finish(600.0)
            _expect(code == 0, code, said)
            if not is_same(wholes[num_processes], run):
                raise SurvivalError("it ended in other bits than the whole run")
            survived.update(faults)
            shutil.rmtree(run.path)
        except (SurvivalError, OSError, ValueError) as error:
            failures.append(f"{run.name} ({num_processes} processes), after {', '.join(faults)}: {error}")
            if run.process is not None:
                run.signal(signal.SIGKILL)
        print(f"{survived.total()} faults survived, {len(failures)} runs not", flush=True)
    return survived, failures


def main() -> int:
    """Prints what was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs lie; a temporary folder if left out")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    survived, failures = soak(folder.resolve(), minutes=arguments.minutes, seed=arguments.seed)
    for name, count in sorted(survived.items()):
        print(f"{name:20} {count}")
    print(f"{survived.total()} faults injected and survived; {len(failures)} runs were not what they should be")
    for failure in failures:
        print(failure)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
