import gzip
import struct

import numpy as np
import pytest
import torch

from leyden.data import MNISTFiles, read_idx


def write_idx(path, array):
    """As Y. LeCun's page has it: two zeros, the type (8: bytes), number of dimensions; big-endian sizes; the bytes."""
    content = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    path.write_bytes(content)


def write_pair(root, prefix, num_samples, ending=""):
    """Sample i is an image of the byte i with the label i % 10."""
    numbers = np.arange(num_samples, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (num_samples, 4, 5))
    write_idx(root / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(root / f"{prefix}-labels-idx1-ubyte{ending}", numbers % 10)


def first_pixels(part):
    return part.tensors["input"][:, 0, 0, 0]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_original_files(tmp_path, ending):
    write_pair(tmp_path, "train", 100, ending)
    write_pair(tmp_path, "t10k", 30, ending)
    data = MNISTFiles(str(tmp_path), val_fraction=0.2)
    train, val, test = (data.dataset(name) for name in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [80, 20, 30]
    assert first_pixels(test).tolist() == list(range(30))
    assert sorted([*first_pixels(train).tolist(), *first_pixels(val).tolist()]) == list(range(100))
    assert val.tensors["target"].bincount().tolist() == [2] * 10
    for part in (train, val, test):
        assert torch.equal(part.tensors["target"], first_pixels(part).long() % 10)
    sample = test[20]
    torch.testing.assert_close(sample["input"], torch.full((1, 4, 5), (20 / 255 - 0.1307) / 0.3081))
    assert sample["target"] == 0


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_a_single_pair_is_split_into_three(tmp_path, prefix):
    write_pair(tmp_path, prefix, 100)
    data = MNISTFiles(str(tmp_path), test_fraction=0.3)
    parts = [data.dataset(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [60, 10, 30]
    assert sorted(torch.cat([first_pixels(part) for part in parts]).tolist()) == list(range(100))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="has neither train-images-idx3-ubyte nor"):
        MNISTFiles(str(tmp_path))
    write_pair(tmp_path, "train", 10)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="has train-images-idx3-ubyte, but neither train-labels-idx1-ubyte nor"):
        MNISTFiles(str(tmp_path))


def test_pairs_must_fit(tmp_path):
    write_pair(tmp_path, "train", 10)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(9, dtype=np.uint8))
    with pytest.raises(ValueError, match="has 10 images, but train-labels-idx1-ubyte 9 labels"):
        MNISTFiles(str(tmp_path)).setup("fit")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(10, 10, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"must hold the labels 0\.\.9, but has 10"):
        MNISTFiles(str(tmp_path)).setup("fit")


def test_cut_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "images"
    write_idx(path, np.zeros((2, 3, 4), dtype=np.uint8))
    assert read_idx(path, 3).shape == (2, 3, 4)
    content = path.read_bytes()
    for cut in (content[:-1], content + b"0", content[:10]):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=f"has {len(cut)} bytes, but its header stands for"):
            read_idx(path, 3)
    for foreign in (b"", b"PNG", content[:2] + b"\x0d" + content[3:]):
        path.write_bytes(foreign)
        with pytest.raises(ValueError, match="must begin with the IDX magic number 00000803, but begins with"):
            read_idx(path, 3)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="magic number 00000801, but begins with 00000803"):
        read_idx(path, 1)


def test_cut_gzip_files_are_refused(tmp_path):
    path = tmp_path / "images.gz"
    write_idx(path, np.zeros((2, 3, 4), dtype=np.uint8))
    content = path.read_bytes()
    for cut in (content[:-12], b"no gzip"):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="no whole gzip file"):
            read_idx(path, 3)
