"""What a run leaves for the page that ``leyden report`` writes."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from leyden.callbacks._test_record import TestRecord
from leyden.core.replace_file import replace_file

__all__ = ["RunRecord"]

PACKAGE = __name__.split(".")[0]
SECONDS_BETWEEN_WRITES = 1.0


class RunRecord(Callback):
    """Logs gradient norm and batch size, and writes ``record/`` under the trainer's ``default_root_dir``.

    In the steps that the loggers write, ``train/grad_norm`` is the L2 norm before clipping (with several optimizers
    one per optimizer, numbered) and ``train/batch_size`` the samples of the optimizer step, over all processes. What
    would not be the same in a run that was killed and resumed stands in files instead:

    - ``sessions.json``: per start of the fit its time, step and environment, and how it ended.
    - ``timing.csv``: seconds of training, without validation, and samples since the session's start.
    - ``test.json``: of a test whose ``test_step`` returns ``logits``: confusion matrix, or pairs of target and
      prediction, or text that the model goes on with; and the samples with the greatest loss.

    Args:
        num_worst: number of these samples.

    Raises:
        ValueError: ``num_worst`` is negative.
    """

    def __init__(self, num_worst: int = 24) -> None:
        if num_worst < 0:
            raise ValueError(f"num_worst must be at least 0, got {num_worst}")
        self.num_worst = num_worst
        self._loop: Any = None  # of the running fit: looked up once, as each step needs it
        self._every = 0  # steps between two that the loggers write
        self._step = -1
        self._in_step = 0  # samples of this process in the running optimizer step
        self._seen = 0  # and in this session
        self._norms: dict[str, Tensor] = {}  # of the last logged step, not written yet
        self._timing: _Timing | None = None
        self._sessions: list[dict[str, Any]] = []
        self._test: TestRecord | None = None

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the fit before."""
        self._loop = trainer.fit_loop.epoch_loop
        self._every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._step, self._in_step, self._seen = -1, 0, 0
        self._norms = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts samples; after a logged step, when no work waits on the device, writes and reads the clock."""
        step = self._loop._batches_that_stepped
        if step != self._step:
            if self._step < 0 and trainer.is_global_zero and not _is_dry(trainer):
                self._begin(trainer, step)  # only now Lightning has put a resumed step right
            self._write_norms(trainer)
            self._step, self._in_step = step, 0
            if self._timing is not None and self._every and step % self._every == 0:
                self._timing.note(step, self._seen * trainer.world_size)
        count = _num_samples(batch)
        self._in_step += count
        self._seen += count

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the norm, if the loggers write this step."""
        if not self._every or (self._step + 1) % self._every or not trainer.loggers:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # processes share it
            norm = norm.full_tensor()
        optimizers = trainer.optimizers
        several = len(optimizers) > 1
        self._norms[f"train/grad_norm_{optimizers.index(optimizer)}" if several else "train/grad_norm"] = norm

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes what a run that goes on from here would not have."""
        if self._norms:
            self._write_norms(trainer)
            for logger in trainer.loggers:
                logger.save()

    def _write_norms(self, trainer: Trainer) -> None:
        """Gives the loggers the norms of the last logged step: not in the step itself, which would wait for them."""
        if not self._norms:
            return
        values = {name: norm.item() for name, norm in self._norms.items()}
        values["train/batch_size"] = float(self._in_step * trainer.world_size)
        self._norms = {}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self._step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        if self._timing is not None:
            self._timing.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets it go on."""
        if self._timing is not None:
            self._timing.go_on()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the end."""
        self._write_norms(trainer)
        self._end(trainer, "ended")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Notes the error."""
        self._end(trainer, f"stopped by {type(exception).__name__}")

    def _begin(self, trainer: Trainer, step: int) -> None:
        folder = self._folder(trainer)
        sessions = _read_list(folder / "sessions.json") if step else []  # a fit from the beginning forgets
        self._sessions = [*sessions, {"time": _now(), "step": step, "environment": _environment(trainer)}]
        self._write_sessions(trainer)
        self._timing = _Timing(folder / "timing.csv", session=len(self._sessions), step=step)

    def _end(self, trainer: Trainer, state: str) -> None:
        timing, self._timing = self._timing, None
        if timing is None:
            return
        timing.write()
        self._sessions[-1]["end"] = {
            "state": state,
            "time": _now(),
            "step": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "seconds": round(time.monotonic() - timing.started, 3),
            "parameters": sum(p.numel() for p in trainer.lightning_module.parameters()),
            "memory": round(_peak_memory(trainer.strategy.root_device), 1),
        }
        self._write_sessions(trainer)

    # ---- test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a record."""
        self._test = TestRecord(self.num_worst, getattr(trainer, "datamodule", None))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        dicts = isinstance(outputs, Mapping) and isinstance(batch, Mapping)
        if self._test is not None and dicts and "logits" in outputs and dataloader_idx == 0:
            self._test.add(outputs["logits"], dict(batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the parts of all processes together and writes them."""
        record, self._test = self._test, None
        content = record.finish(pl_module) if record is not None else None
        if content is None or not trainer.is_global_zero or _is_dry(trainer):
            return
        _replace(self._folder(trainer) / "test.json", json.dumps(content))

    # ---- files

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "record"

    def _write_sessions(self, trainer: Trainer) -> None:
        _replace(self._folder(trainer) / "sessions.json", json.dumps(self._sessions, indent=1) + "\n")


class _Timing:
    """Seconds and samples by step, appended to a file now and then."""

    def __init__(self, path: Path, *, session: int, step: int) -> None:
        self.path = path
        self.session = session
        self.started = time.monotonic()
        self._paused = 0.0
        self._pause_began: float | None = None
        self._rows: list[str] = []
        self._written = self.started
        kept = []
        if step and path.is_file():
            lines = path.read_text().splitlines()[1:]
            kept = [line for line in lines if line.count(",") == 3 and int(line.split(",")[1]) < step]
        _replace(path, "\n".join(["session,step,seconds,samples", *kept, ""]))

    def note(self, step: int, samples: int) -> None:
        now = time.monotonic()
        self._rows.append(f"{self.session},{step},{now - self.started - self._paused:.4f},{samples}\n")
        if now - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def pause(self) -> None:
        self._pause_began = time.monotonic()

    def go_on(self) -> None:
        if self._pause_began is not None:
            self._paused += time.monotonic() - self._pause_began
            self._pause_began = None

    def write(self) -> None:
        self._written = time.monotonic()
        if self._rows:
            with open(self.path, "a") as file:
                file.write("".join(self._rows))
            self._rows = []


def _replace(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def _is_dry(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _num_samples(batch: Any) -> int:
    """Length of the first tensor; of several streams their sum."""
    if type(batch) is dict and isinstance(batch.get("input"), Tensor):  # every step pays for the search below
        return batch["input"].shape[0]
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if isinstance(batch, Mapping):
        streams = [value for value in batch.values() if isinstance(value, Mapping)]
        if streams:
            return sum(map(_num_samples, streams))
        return next((_num_samples(value) for value in batch.values()), 0)
    return _num_samples(batch[0]) if isinstance(batch, (list, tuple)) and batch else 0


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _read_list(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []


def _environment(trainer: Trainer) -> dict[str, str]:
    device = trainer.strategy.root_device
    environment = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        PACKAGE: getattr(import_module(PACKAGE), "__version__", "?"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": f"{trainer.world_size} on {trainer.num_nodes} node(s)",
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
    }
    if device.type == "cuda":
        environment["cuda"] = str(torch.version.cuda)
    return environment


def _commit() -> str:
    """Commit of the working folder, and whether tracked files differ from it."""
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "--no-optional-locks"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 2, "check": True}
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
        return commit + (" with changes" if changed else "")
    return "none"


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or "?"


def _peak_memory(device: torch.device) -> float:
    """Greatest memory in MiB: of the allocator on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
