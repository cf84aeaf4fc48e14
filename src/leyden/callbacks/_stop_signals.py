"""Signals by which a scheduler ends a run, noted instead of obeyed."""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn

from leyden.core.distributed import world_size

__all__ = ["StopSignals", "requeue"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes SIGTERM and SIGUSR1; several processes learn of them in the same step, whichever of them gets one.

    The processes exchange what they have noted while they go on, and read it a step later: nothing waits for it.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[signal.Signals, Any] = {}
        self._exchange: tuple[torch.Tensor, Any] | None = None
        self._group: Any = None

    def install(self) -> None:
        """Begins to note them, if this is the main thread: Python allows no other one."""
        self._noted, self._exchange, self._group = 0, None, None
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo")  # the host's own: an accelerator is not waited for
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def restore(self) -> None:
        """Puts back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def received(self) -> int:
        """Number of the signal by which the run shall end, or 0; to be called by all processes alike."""
        if self._group is None:
            return self._noted
        number = 0
        if self._exchange is not None:
            noted, work = self._exchange
            work.wait()
            number = int(noted)
        noted = torch.tensor(self._noted)
        self._exchange = noted, dist.all_reduce(noted, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return number

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = max(self._noted, number)


def requeue() -> None:
    """Puts the SLURM job of this process back into the queue, if it is in one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        rank_zero_warn(f"SLURM did not put job {job} back into the queue: {done.stderr.strip()}")
