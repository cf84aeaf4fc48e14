"""A fit that measures what a comparison reports: metrics, time, memory."""

import math
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from leyden.cli.commands import Arguments
from leyden.cli.config import Section, set_option
from leyden.cli.lightning import LeydenCLI

__all__ = ["FLOOR", "ComparedFit", "forget_peak", "peak_memory"]


class ComparedFit(LeydenCLI):
    """Fits in a given folder, or goes on there.

    Args:
        tree: the merged config.
        files: the config files that were named.
        folder: of the run.
        seed: in place of the config's.
        write_sources: called when all objects are made, before the fit.

    Attributes:
        result: ``metrics`` (of the last epoch, and of the test), ``seconds`` and ``cpu_seconds`` of the fit (None if it
            was interrupted), ``memory`` in MiB (on a CPU what the process has grown since it was ready to start, at
            most; on a GPU the allocator's peak), ``steps``, ``parameters``, ``accelerator``, ``resumed``.
    """

    def __init__(
        self, tree: Section, files: list[Path], folder: Path, seed: int, *, write_sources: Callable[[], None]
    ) -> None:
        set_option(tree, "seed_everything", str(seed))
        self.write_sources = write_sources
        self.result: dict[str, Any] = {}
        self.cpu_started = 0.0
        self.resumed = (folder / "checkpoints" / "last.ckpt").is_file()
        super().__init__("fit", tree, Arguments(resume=str(folder)), files)

    def before_fit(self) -> None:
        """Starts clocks and meters."""
        self.write_sources()
        forget_peak()
        self.cpu_started = time.process_time()
        super().before_fit()

    def after_fit(self) -> None:
        """Reads them, then tests."""
        seconds, cpu_seconds = time.monotonic() - self.started, time.process_time() - self.cpu_started
        memory, metrics = peak_memory() - FLOOR, self._metrics()
        if torch.cuda.is_available() and self.trainer.strategy.root_device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
        super().after_fit()
        self.result = {
            "metrics": metrics | self._metrics(),
            "seconds": None if self.resumed else round(seconds, 3),
            "cpu_seconds": None if self.resumed else round(cpu_seconds, 3),
            "memory": round(memory, 2),
            "steps": self.trainer.global_step,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "accelerator": self.trainer.strategy.root_device.type,
            "threads": torch.get_num_threads(),
            "resumed": self.resumed,
        }

    def _metrics(self) -> dict[str, float | None]:
        values = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN


def forget_peak() -> None:
    """Starts the meter of memory anew, where the system lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # the peak is then that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Greatest resident memory, in MiB, since `forget_peak` where the system can say so."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10


forget_peak()
FLOOR = peak_memory()  # all modules are imported, nothing is made
