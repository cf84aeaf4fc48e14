"""Jobs of two nodes on a real SLURM, which go back into the queue in the middle of an epoch."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import leyden
from leyden.cli import main

CLUSTER = Path(leyden.__file__).parents[2] / "scripts" / "slurm" / "dev-cluster"
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "mungekey") if shutil.which(name) is None]
SLOW = """\
import time
from lightning.pytorch import Callback

class Slow(Callback):
    def on_train_batch_start(self, *args):
        time.sleep(0.05)
"""
OPTIONS = [
    "--nodes=2",
    "-c=supervised/digits",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=8",
    "--trainer.limit_train_batches=6",
    "--trainer.logger.WandbLogger=null",
    "--trainer.callbacks.ProgressBar=null",
    "--trainer.callbacks+=slow.Slow",
    "--model.network.width=4",
    "--model.network.dropout=0.1",
    "--data.num_workers=1",
    "--debug",
]
RUN = Path("logs/supervised/digits/queued")

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here: {', '.join(MISSING)} not on the PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons have to be started as root"),
]


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[None]:
    folder = tempfile.mkdtemp()  # short: it holds a socket
    subprocess.run([CLUSTER, "start", folder], check=True, capture_output=True)
    monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(SLOW)
    yield
    subprocess.run(["scancel", "--me"], check=False)
    subprocess.run([CLUSTER, "stop", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        logs = "\n".join(path.read_text() for path in Path("logs/slurm").glob("*.log"))
        assert time.monotonic() < deadline, f"nothing happened for {seconds:g} s; {queue()}; {logs}"
        time.sleep(0.05)


def queue() -> str:
    return subprocess.run(["squeue", "--noheader", "--format=%i %j %T"], capture_output=True, text=True).stdout


def age() -> float:
    path = RUN / "checkpoints/last.ckpt"
    return path.stat().st_mtime if path.is_file() else 0.0


def test_a_job_of_two_nodes_goes_on_after_each_return_to_the_queue(cluster, capfd, assert_same_run):
    assert main(["submit", *OPTIONS, "--name=whole"]) == 0
    wait_until(lambda: not queue())
    assert main(["submit", *OPTIONS, "--name=queued"]) == 0
    job = queue().split()[0]
    assert f"job {job}, run {RUN}, output logs/slurm/queued-{job}.log" in capfd.readouterr().out
    # by itself, as before the end of its time; by others, as at a preemption
    for step in (["scancel", "--signal=USR1", job], ["scontrol", "requeue", job]):
        saved = age()
        wait_until(lambda before=saved: age() > before)
        time.sleep(0.2)  # within an epoch
        subprocess.run(step, check=True)
        wait_until(lambda: "COMPLETING" in queue() or "PENDING" in queue())
    wait_until(lambda: not queue())
    log = Path(f"logs/slurm/queued-{job}.log").read_text()
    assert log.count("MEMBER: 2/2") == 3
    assert "SIGUSR1: the run is saved and ends" in log
    assert_same_run(RUN.with_name("whole"), RUN, other_saves=True)
