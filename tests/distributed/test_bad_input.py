"""Mistakes with several processes: before the first step, one line of each process, and none of them waits."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from leyden.cli import main

SMALL = ["fit", "-c", "trainer/quick", "-c", "logger/csv", "--model.network.width=4", "--name=run"]
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.callbacks.ProgressBar=null"]


def error_line(folder: Path, arguments: list[str], second: list[str] | None = None) -> str:
    """What the command says in this process; the second process may be given other arguments."""
    os.chdir(folder)
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        assert main([*SMALL, *TWO, *(second if second and os.environ["RANK"] == "1" else arguments)]) == 1
    text = error.getvalue()
    assert "Traceback" not in text
    assert text.count("error:") == 1
    return text.splitlines()[-1]


def assert_all_say(lines: list[str], pattern: str) -> None:
    for rank, line in enumerate(lines):
        assert line.startswith("leyden: error: " if rank == 0 else "leyden [rank 1]: error: ")
        assert pattern in line


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_batch_that_cannot_be_shared(run_processes, tmp_path, strategy):
    lines = run_processes(error_line, 2, tmp_path, ["-c", f"strategy/{strategy}", "--data.batch_size=33"])
    assert_all_say(lines, "batch_size=33 cannot be shared equally by 2 processes")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_no_place_to_meet(start_processes, tmp_path):
    lines = start_processes(error_line, 2, tmp_path, ["-c", "strategy/ddp"]).results()
    assert_all_say(lines, "MASTER_ADDR and MASTER_PORT must say where the processes of this run meet")


def test_two_strategies(run_processes, tmp_path):
    lines = run_processes(error_line, 2, tmp_path, ["-c", "strategy/ddp", "-c", "strategy/fsdp2"])
    assert_all_say(lines, "a run has one strategy, got -c strategy/ddp and -c strategy/fsdp2")


def test_another_strategy_in_each_process(run_processes, tmp_path):
    lines = run_processes(error_line, 2, tmp_path, ["-c", "strategy/ddp"], ["-c", "strategy/fsdp2"])
    assert_all_say(
        lines,
        "different configs: trainer.strategy is 'ddp' in process 0 and 'leyden.plugins.FSDP2Strategy' in process 1",
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_checkpoint_that_is_a_folder_of_others(run_processes, tmp_path, strategy):
    (tmp_path / "step=8.ckpt").mkdir()
    lines = run_processes(error_line, 2, tmp_path, ["-c", f"strategy/{strategy}", "--ckpt_path=step=8.ckpt"])
    assert_all_say(lines, "step=8.ckpt is a folder, as Lightning's sharded strategies and DeepSpeed write them")


def test_a_log_folder_that_cannot_be_made(run_processes, tmp_path):
    (tmp_path / "logs").write_text("")  # root may write into every folder
    lines = run_processes(error_line, 2, tmp_path, ["-c", "strategy/fsdp2"])
    assert_all_say(lines, "Not a directory: 'logs/default/run'")
