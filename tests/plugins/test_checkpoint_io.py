import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from leyden.core import replace_file
from leyden.plugins import AtomicCheckpointIO, DamagedCheckpointError


class Foreign:
    pass


@pytest.fixture
def io():
    return AtomicCheckpointIO()


def state(value, size=1000):
    return {"state_dict": {"weight": torch.full((size,), float(value))}, "epoch": value, "callbacks": {"EMA": (1, "x")}}


def test_round_trip_leaves_one_file(io, tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint(state(1), path)
    io.save_checkpoint(state(2), path)
    loaded = io.load_checkpoint(path)
    assert loaded["epoch"] == 2
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((1000,), 2.0))
    assert os.listdir(path.parent) == ["last.ckpt"]
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert os.listdir(path.parent) == []


def test_a_kill_while_writing_leaves_the_one_before(io, tmp_path):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(state(1), path)
    script = (
        "import sys, torch\n"
        "from leyden.core import replace_file\n"
        "with replace_file(sys.argv[1]) as file:\n"
        "    file.write(b'half of a'); file.flush(); print('written', flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "written\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert io.load_checkpoint(path)["epoch"] == 1


def test_a_full_disk_is_reported_and_nothing_is_left_behind(io, tmp_path):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(state(1), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # every write beyond fails, as on a full disk
    try:
        with pytest.raises(OSError, match=r"last\.ckpt could not be written: File too large"):
            io.save_checkpoint(state(2, size=1_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert io.load_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("cut", [0, 10, 0.5, -1])
def test_a_cut_file_is_named_with_its_intact_neighbours(io, tmp_path, cut):
    last, previous, best = (tmp_path / name for name in ("last.ckpt", "previous.ckpt", "best.ckpt"))
    for age, path in enumerate([best, previous, last]):
        io.save_checkpoint(state(age), path)
        os.utime(path, (time.time() + age, time.time() + age))
    size = last.stat().st_size
    os.truncate(last, int(cut * size) if isinstance(cut, float) else cut % size)
    with pytest.raises(DamagedCheckpointError, match=r"last\.ckpt is damaged .*intact beside it: .*previous") as caught:
        io.load_checkpoint(last)
    assert "\n" not in str(caught.value)
    assert caught.value.path == last
    assert caught.value.intact == [previous, best]


def test_altered_bytes_are_noticed(io, tmp_path):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(state(1, size=10_000), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="nothing intact is beside it"):
        io.load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(io, tmp_path):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"weight": torch.arange(3.0), "epoch": 1}, path)
    content = path.read_bytes()
    noticed = 0
    for position in range(0, len(content), 3):  # headers, names, flags, padding, numbers, directory
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x80]) + content[position + 1 :])
        try:
            loaded = io.load_checkpoint(path)
        except DamagedCheckpointError:
            noticed += 1
        else:
            assert loaded["epoch"] == 1
            assert torch.equal(loaded["weight"], torch.arange(3.0))
    assert noticed > 100


def test_code_is_never_loaded(io, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"callback": Foreign()}, path)
    for weights_only in (None, False, True):
        with pytest.raises(ValueError, match=r"holds a \S*Foreign, but only tensors and plain values"):
            io.load_checkpoint(path, weights_only=weights_only)


def test_missing_file_and_storage_options(io, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*last\.ckpt"):
        io.load_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(TypeError, match="storage_options must be None"):
        io.save_checkpoint({}, tmp_path / "last.ckpt", storage_options={"a": 1})


def test_an_error_in_the_block_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with replace_file(path) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
