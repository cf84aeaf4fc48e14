"""The command under torchrun: one run, one folder."""

import csv
import os
import subprocess
import sys

import torch


def test_fit_under_torchrun(quick_fit, tmp_path):
    arguments = [argument for argument in quick_fit("default", "") if not argument.startswith("--name")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "leyden.cli"]
    options = ["--trainer.max_epochs=1", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        [*launcher, *arguments, *options], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "logs" / "default").iterdir()  # the processes agreed on a name
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "record",
        "report.html",
    ]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert len(checkpoint["random_states"]) == 2
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(4))
