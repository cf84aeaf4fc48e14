import subprocess
import sys

import numpy as np
import pytest
import torch

from leyden.core import LogitCache

LOGITS = torch.tensor([[0.1, -2.0, 3.0], [1e-30, 7.0, -0.0]])


def test_rows_come_back_bit_for_bit_and_say_whether_they_were_written(tmp_path):
    cache = LogitCache(tmp_path / "deep" / "teacher.npy", 5, 3)
    cache.write(torch.tensor([3, 1]), LOGITS.clone().requires_grad_())
    logits, written = cache.read(torch.tensor([1, 0, 3]))
    assert torch.equal(logits, torch.stack([LOGITS[1], torch.zeros(3), LOGITS[0]]))
    assert logits.signbit()[0].tolist() == [False, False, True]
    assert written.tolist() == [True, False, True]
    assert written.dtype == torch.bool


def test_a_new_object_finds_the_rows(tmp_path):
    LogitCache(tmp_path / "c.npy", 5, 3).write(torch.tensor([4, 2]), LOGITS)
    logits, written = LogitCache(tmp_path / "c.npy", 5, 3).read(torch.arange(5))
    assert torch.equal(logits[[4, 2]], LOGITS)
    assert written.tolist() == [False, False, True, False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["c.npy"]


def test_half_precision_takes_half_the_space(tmp_path):
    cache = LogitCache(tmp_path / "half.npy", 1000, 10, dtype="float16")
    cache.write(torch.tensor([0]), torch.linspace(-1, 1, 10)[None])
    logits, _ = cache.read(torch.tensor([0]))
    assert logits.dtype == torch.float16
    assert torch.equal(logits[0], torch.linspace(-1, 1, 10).half())
    LogitCache(tmp_path / "full.npy", 1000, 10)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.npy", "full.npy")]
    assert [size // 1000 for size in sizes] == [21, 41]  # a flag and ten numbers


def test_numpy_reads_the_file(tmp_path):
    cache = LogitCache(tmp_path / "c.npy", 4, 3)
    cache.write(torch.tensor([2]), LOGITS[:1])
    cache.flush()
    rows = np.load(tmp_path / "c.npy")
    assert rows["written"].tolist() == [False, False, True, False]
    assert rows["logits"].shape == (4, 3)
    assert np.array_equal(rows["logits"][2], LOGITS[0].numpy())


def test_processes_share_the_file(tmp_path):
    path = tmp_path / "c.npy"
    cache = LogitCache(path, 4, 3)
    cache.write(torch.tensor([0]), LOGITS[:1])
    program = (
        "import torch; from leyden.core import LogitCache\n"
        f"cache = LogitCache({str(path)!r}, 4, 3)\n"
        "rows, written = cache.read(torch.tensor([0, 1])); assert written.tolist() == [True, False], written\n"
        "cache.write(torch.tensor([1]), 2 * rows[:1])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    logits, written = cache.read(torch.tensor([0, 1]))  # by the map that was open before
    assert written.all()
    assert torch.equal(logits[1], 2 * LOGITS[0])


@pytest.mark.parametrize(
    ("num_samples", "num_classes", "dtype"), [(5, 3, "float32"), (4, 2, "float32"), (4, 3, "float16")]
)
def test_a_cache_of_another_shape_is_refused(tmp_path, num_samples, num_classes, dtype):
    LogitCache(tmp_path / "c.npy", 4, 3)
    with pytest.raises(ValueError, match=r"c\.npy holds 4 rows.*made for other data or another teacher; remove it"):
        LogitCache(tmp_path / "c.npy", num_samples, num_classes, dtype=dtype)


@pytest.mark.parametrize("content", [b"", b"no cache", b"\x93NUMPY\x01\x00"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt is no logit cache"):
        LogitCache(path, 4, 3)
    assert path.read_bytes() == content
