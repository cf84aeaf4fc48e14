"""Running a function in several processes that form a gloo group, on one machine and without a port."""

import importlib.util
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

GRACE = 5.0  # seconds for the other processes once one has failed: they may wait for it

Run = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def _server() -> multiprocessing.context.ForkServerContext:
    # Each process is forked from one that has imported what takes seconds to import, but has run nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "torchmetrics.classification", "sklearn.datasets", "pytest"])
    return context


@pytest.fixture
def run_processes(
    _server: multiprocessing.context.ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """``run_processes(function, world_size, *args, **kwargs)`` returns what the function returned, by rank.

    The function stands at the top of a test file; its arguments can be pickled, its results saved by `torch.save`. The
    processes are set up as torchrun does it, so that Lightning's strategies take them as they are. With
    ``group=False`` there is no process group yet. An error in one process is raised here, with its traceback; after
    ``timeout`` seconds all processes are killed.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = 0

    def run(
        function: Callable[..., Any],
        world_size: int,
        *args: Any,
        group: bool = True,
        timeout: float = 120.0,
        **kwargs: Any,
    ) -> list[Any]:
        nonlocal calls
        calls += 1
        folder = tmp_path / f".processes_{calls}"
        folder.mkdir()
        source = sys.modules[function.__module__].__file__
        job = (source, function.__name__, args, kwargs, world_size, group, folder, timeout)
        processes = [
            _server.Process(target=runpy.run_path, args=(__file__, {"rank": rank, "job": job}, "rank"), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            _join(processes, folder, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]

    return run


def _join(processes: list[Any], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = list(processes)
    while running:
        if not wait([process.sentinel for process in running], max(0.0, deadline - time.monotonic())):
            break
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE)
    errors = [file.read_text() for file in sorted(folder.glob("*.error"))]
    if errors:
        raise RuntimeError("\n".join(errors))
    if running:
        raise TimeoutError(f"{len(running)} of {len(processes)} processes still ran after {timeout:g} s")
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"the processes ended with {[process.exitcode for process in processes]}")


def _run_rank(rank: int, job: tuple[Any, ...]) -> None:
    source, name, args, kwargs, world_size, group, folder, timeout = job
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",
    )
    torch.set_num_threads(1)
    try:
        spec = importlib.util.spec_from_file_location(Path(source).stem, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        if group:
            # by a file, because a free port may be taken by another between asking and using
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder / 'rendezvous'}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout),
            )
        torch.save(getattr(module, name)(*args, **kwargs), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"process {rank} of {world_size}:\n{traceback.format_exc()}")
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "rank":  # in a process that `run_processes` started
    _run_rank(globals()["rank"], globals()["job"])
