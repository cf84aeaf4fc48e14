"""Runs on Ray: a worker is lost in the middle of an epoch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.train", reason="needs Ray Train")

LOSE = """\
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class LoseWorker(Callback):
    '''The second process is killed in a step of the second epoch, once.'''

    def on_train_batch_start(self, trainer, *args):
        lost = Path("lost")
        if trainer.global_step == 9 and trainer.global_rank == 1 and "WORKER" in os.environ and not lost.exists():
            lost.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lost_worker_costs_no_bit(quick_fit, assert_same_run, tmp_path):
    (tmp_path / "lose.py").write_text(LOSE)
    options = ["--trainer.strategy=ddp", "--trainer.callbacks+=lose.LoseWorker", "--model.network.dropout=0.2"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}

    def leyden(*arguments: str, **more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "leyden.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=250
        )

    whole = leyden(*quick_fit("default", "whole", *options), "--trainer.devices=2")
    assert whole.returncode == 0, whole.stderr
    _, *rest = quick_fit("default", "hurt", *options)
    hurt = leyden("ray", "--workers=2", "--cpus=0.5", *rest, WORKER="1")
    assert hurt.returncode == 0, hurt.stderr
    assert (tmp_path / "lost").exists()
    run = tmp_path / "logs/default/hurt"
    assert_same_run(run.with_name("whole"), run)
    assert "ray" not in (run / "config.yaml").read_text()  # the run can be resumed without Ray
    again = leyden("ray", *rest)
    assert again.returncode == 1
    assert "has checkpoints of a run already" in again.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workers=0", "--workers must be at least 1, got 0"),
        ("--cpus=0", "--cpus must be more than 0, got 0"),
        ("--restarts=-2", "--restarts must be at least 0, or -1 for always, got -2"),
        ("--model.network.width=0", "width"),
    ],
)
def test_what_is_refused_before_ray_starts(argument, message, tmp_path, monkeypatch, capsys):
    from leyden.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["ray", argument]) == 1
    assert message in capsys.readouterr().err
    assert not Path("logs").exists()
