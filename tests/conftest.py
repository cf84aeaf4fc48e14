"""What all test levels share: processes to run and to kill, and the experiments to try."""

import contextlib
import importlib.util
import multiprocessing
import os
import random
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiment"
GRACE = 5.0  # seconds for the other processes once one has failed: they may wait for it


def pytest_configure(config: pytest.Config) -> None:
    # Lightning's own, under newer torch and jsonargparse; all other warnings are errors
    config.addinivalue_line("filterwarnings", "ignore:.*LeafSpec:FutureWarning")
    config.addinivalue_line("filterwarnings", "ignore:.*`srun` command is available")  # on a cluster
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    # more threads only wait for each other, and another number of them rounds differently: here and in all processes
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    config.addinivalue_line(
        "markers",
        "sampled(count): of this test's many parameters only so many, chosen by LEYDEN_TEST_SEED, are tried by default",
    )


@pytest.fixture(autouse=True)
def _forget_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning leaves it behind, and reads it in the next test
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


# ---- experiments


def is_stages_file(path: Path) -> bool:
    """Whether an experiment is a run of several fits."""
    return "\nstages:" in path.read_text()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that takes an ``experiment``, or one that is a single fit, with each of them, as ``-c`` names it."""
    paths = sorted(EXPERIMENTS.rglob("*.yaml"))
    for name, kind in (("experiment", paths), ("fit_experiment", [p for p in paths if not is_stages_file(p)])):
        if name in metafunc.fixturenames:
            names = [path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in kind]
            metafunc.parametrize(name, ["default", *names])


@pytest.hookimpl(tryfirst=True)  # before pytest itself leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what is not drawn of a sampled test."""
    sampled: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled"):
            sampled.setdefault((item.path, item.originalname), []).append(item)
    for (_, name), alike in sampled.items():
        (count,) = alike[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        draw = random.Random(f"{os.environ.get('LEYDEN_TEST_SEED', '0')} {name}")
        drawn = draw.sample(alike, min(count, len(alike)))
        for item in alike:
            if item not in drawn:
                item.add_marker(pytest.mark.slow)


QUICK = [
    "trainer.accelerator=cpu",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
]
QUIET = ["trainer.logger.WandbLogger=null", "trainer.callbacks.ProgressBar=null"]


@pytest.fixture
def quick_fit(tmp_path: Path) -> Callable[..., list[str]]:
    """``quick_fit(experiment, name, ...)``: arguments of a fit of 3 epochs of 4 small steps, logged to a file.

    Of an experiment of stages it is its last fit, on what the stages before it have given.
    """

    def arguments(experiment: str, name: str, *more: str) -> list[str]:
        settings = [*QUICK, *QUIET]
        if experiment != "default" and is_stages_file(EXPERIMENTS / f"{experiment}.yaml"):
            experiment, settings = last_fit(experiment, tmp_path / "stages"), QUICK
        return [
            "fit",
            *(["-c", experiment] if experiment != "default" else []),
            f"--name={name}",
            *(f"--{setting}" for setting in settings),
            "--trainer.devices=1",
            "--trainer.max_epochs=3",
            "--trainer.limit_train_batches=4",
            "--trainer.callbacks.LastCheckpoint.every_n_steps=2",
            "--debug",
            *more,
        ]

    return arguments


def last_fit(experiment: str, folder: Path) -> str:
    """Runs the stages of an experiment, each for two steps; returns the config of the last that was a fit."""
    from leyden.cli import main  # slow to import

    path = EXPERIMENTS / f"{experiment}.yaml"
    config = folder / path.name
    if not config.is_file():
        (folder / "short").mkdir(parents=True, exist_ok=True)
        shorter = folder / "short" / path.name
        shorter.write_text(shorter_stages(path))
        short = ["trainer.max_epochs=2", "trainer.limit_train_batches=2", "trainer.limit_predict_batches=2"]
        with contextlib.chdir(folder):
            assert main(["run", str(shorter), "--name=stages", "--debug", "--set", *QUICK, *QUIET, *short]) == 0
        fits = [file.parents[1] for file in folder.rglob("checkpoints/last.ckpt")]
        last = max(fits, key=lambda fit: (fit / "checkpoints" / "last.ckpt").stat().st_mtime_ns)
        logs = f"logs/{path.stem}/stages/"
        config.write_text((last / "config.yaml").read_text().replace(logs, f"{folder}/{logs}"))
    return str(config)


# of experiments of stages: what needs longer fits than those of two epochs, and what takes long
SHORTER = {
    "datm": {
        "iterations: 120": "iterations: 55",  # its progress is saved once
        "steps: 20": "steps: 2",
        "min_start: 4": "min_start: 0",
        "start: 10": "start: 1",
    }
}


def shorter_stages(path: Path) -> str:
    """Text of an experiment of stages that does with fits of two epochs."""
    text = path.read_text()
    for long, short in SHORTER.get(path.stem, {}).items():
        text = text.replace(long, short)
    return text


@pytest.fixture(name="shorter_stages")
def _shorter_stages() -> Callable[[Path], str]:
    """``shorter_stages(path)``."""
    return shorter_stages


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """``make_trainer(*callbacks, **kwargs)``: a quiet trainer on the CPU."""
    from lightning.pytorch import Trainer  # slow to import
    from lightning.pytorch.callbacks import Checkpoint

    def make(*callbacks: Any, **kwargs: Any) -> Trainer:
        return Trainer(
            **{
                "accelerator": "cpu",
                "default_root_dir": tmp_path,
                "max_epochs": 3,
                "log_every_n_steps": 1,
                "callbacks": list(callbacks),
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "logger": False,
                "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **kwargs,
            }
        )

    return make


# ---- processes


class Processes:
    """Processes that run one function, by rank."""

    def __init__(self, processes: list[Any], folder: Path) -> None:
        self.processes = processes
        self.folder = folder

    def running(self) -> bool:
        return any(process.exitcode is None for process in self.processes)

    def kill(self) -> None:
        """Ends them by SIGKILL, as a lack of memory or power does."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def results(self, timeout: float = 120.0) -> list[Any]:
        """Waits, and returns what the function returned; raises its error with its traceback."""
        try:
            self._join(timeout)
        finally:
            self.kill()
        return [torch.load(self.folder / f"{rank}.pt", weights_only=False) for rank in range(len(self.processes))]

    def _join(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        running = list(self.processes)
        while running:
            if not wait([process.sentinel for process in running], max(0.0, deadline - time.monotonic())):
                break
            running = [process for process in running if process.exitcode is None]
            if any(process.exitcode for process in self.processes):
                deadline = min(deadline, time.monotonic() + GRACE)
        errors = [file.read_text() for file in sorted(self.folder.glob("*.error"))]
        if errors:
            raise RuntimeError("\n".join(errors))
        if running:
            raise TimeoutError(f"{len(running)} of {len(self.processes)} processes still ran after {timeout:g} s")
        if any(process.exitcode for process in self.processes):
            raise RuntimeError(f"the processes ended with {[process.exitcode for process in self.processes]}")


@pytest.fixture(scope="session")
def _fork_server() -> Any:
    # Each process is forked from one that has imported what takes seconds to import, but has run nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lightning.pytorch.cli", "torchmetrics.classification", "sklearn.datasets", "pytest"]
    )
    return context


@pytest.fixture
def start_processes(_fork_server: Any, tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    """``start_processes(function, world_size, *args, **kwargs)`` runs a function in fresh processes.

    The function stands at the top of a test file; its arguments can be pickled, its result saved by `torch.save`. Each
    process has the environment that torchrun would give it, so that Lightning's strategies take it as it is.
    ``group=True`` forms a gloo group before the call.
    """
    started: list[Processes] = []

    def start(
        function: Callable[..., Any], world_size: int, *args: Any, group: bool = False, **kwargs: Any
    ) -> Processes:
        folder = tmp_path / f".processes_{len(started)}"
        folder.mkdir()
        source = sys.modules[function.__module__].__file__
        job = (source, function.__name__, args, kwargs, world_size, group, folder)
        processes = [
            _fork_server.Process(target=runpy.run_path, args=(__file__, {"rank": rank, "job": job}, "rank"))
            for rank in range(world_size)
        ]
        started.append(Processes(processes, folder))
        for process in processes:
            process.start()
        return started[-1]

    yield start
    for processes in started:
        processes.kill()


@pytest.fixture
def run_processes(start_processes: Callable[..., Processes]) -> Callable[..., list[Any]]:
    """``run_processes(function, world_size, ...)``: results of a function in a gloo group of processes, by rank."""

    def run(*args: Any, timeout: float = 120.0, **kwargs: Any) -> list[Any]:
        return start_processes(*args, group=True, **kwargs).results(timeout)

    return run


def _run_rank(rank: int, job: tuple[Any, ...]) -> None:
    source, name, args, kwargs, world_size, group, folder = job
    if world_size > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
            GROUP_RANK="0",
            TORCHELASTIC_RUN_ID="test",
        )
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a test that ran before the fork server was started
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # loaders start their workers as anywhere else
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
                timeout=timedelta(seconds=60),
            )
        torch.save(getattr(module, name)(*args, **kwargs), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(f"process {rank} of {world_size}:\n{traceback.format_exc()}")
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "rank":  # in a process that `start_processes` started
    _run_rank(globals()["rank"], globals()["job"])
