"""What a kill, a full disk or a damaged file does to a run's checkpoints."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from leyden.callbacks import LastCheckpoint
from leyden.cli import main
from leyden.plugins import AtomicCheckpointIO

RUN = Path("logs/default/faulty")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save_again_and_again(path: Path) -> None:
    number = 0
    while True:
        number += 1
        # 8 MB, all of one number: a mixture of two would be seen
        AtomicCheckpointIO().save_checkpoint(
            {"number": number, "weights": torch.full((2_000_000,), float(number))}, path
        )


def test_kill_while_saving_leaves_a_whole_checkpoint(start_processes, tmp_path):
    path = tmp_path / "last.ckpt"
    draw = random.Random(os.environ.get("LEYDEN_TEST_SEED", "0"))
    interrupted = 0
    for _ in range(4):
        process = start_processes(save_again_and_again, 1, path)
        wait_until(lambda: path.is_file() and any(tmp_path.glob(".last*")), process)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        interrupted += any(tmp_path.glob(".last*"))
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        assert (checkpoint["weights"] == checkpoint["number"]).all()
        assert len(list(tmp_path.glob(".last*"))) <= 1  # what kills leave behind does not pile up
    assert interrupted > 0


def save_slowly(folder: Path, arguments: list[str]) -> int:
    os.chdir(folder)
    save = torch.save
    saved = 0

    def slow_save(checkpoint, file):
        nonlocal saved
        saved += 1
        if saved == 3:  # half of a checkpoint, and then the kill comes
            file.write(b"x" * 1000)
            file.flush()
            (folder / "saving").touch()
            time.sleep(600)
        save(checkpoint, file)

    torch.save = slow_save
    return main(arguments)


def test_run_killed_while_saving_can_be_resumed(start_processes, quick_fit, tmp_path):
    process = start_processes(save_slowly, 1, tmp_path, quick_fit("default", RUN.name))
    wait_until((tmp_path / "saving").is_file, process)
    process.kill()
    before = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert main(["fit", f"--resume={RUN}"]) == 0
    after = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < before["global_step"] < after["global_step"] == 12


def test_cut_off_checkpoint_is_named_and_the_one_before_is_offered(quick_fit, monkeypatch, capsys):
    def die_before_batch_10(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == 10:  # a checkpoint was just saved
            raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_start", die_before_batch_10)
        assert main(quick_fit("default", RUN.name)) == 1
    last, previous = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/previous.ckpt"
    os.truncate(last, last.stat().st_size // 2)
    capsys.readouterr()
    assert main(["fit", f"--resume={RUN}"]) == 1
    error = error_line(capsys)
    assert f"the checkpoint {last} is damaged" in error
    assert error.endswith(f"leyden fit --resume {RUN} --ckpt_path {previous}")
    # the offer works, and the damaged file does not take the place of the whole one
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_start", die_before_batch_10)
        assert main(["fit", f"--resume={RUN}", f"--ckpt_path={previous}"]) == 1
    assert torch.load(last, weights_only=True)["global_step"] == 10
    assert torch.load(previous, weights_only=True)["global_step"] == 8


def test_full_disk_is_reported_and_the_checkpoint_before_stays(quick_fit, monkeypatch, capsys):
    save = torch.save
    saved = 0

    def save_until_full(checkpoint, file):
        nonlocal saved
        saved += 1
        if saved == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        assert main(quick_fit("default", RUN.name)) == 1
    error = error_line(capsys)
    assert "could not be written: No space left on device" in error
    assert str(RUN / "checkpoints") in error
    assert main(["fit", f"--resume={RUN}"]) == 0


def fit_with_small_files(folder: Path, arguments: list[str]) -> int:
    """The system refuses to write more than so many bytes to one file: in the middle of a checkpoint."""
    os.chdir(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with open("errors", "w") as file:
        os.dup2(file.fileno(), 2)
        return main(arguments)


def test_write_that_fails_halfway_is_reported(start_processes, quick_fit, tmp_path):
    assert start_processes(fit_with_small_files, 1, tmp_path, quick_fit("default", RUN.name)).results() == [1]
    error = (tmp_path / "errors").read_text().strip().splitlines()[-1]
    assert "could not be written: File too large" in error
    assert not any((RUN / "checkpoints").iterdir())


def error_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def wait_until(happened, process) -> None:
    while process.running() and not happened():
        time.sleep(0.001)
    assert process.running()
