import os
import pickle
import struct

import numpy as np
import pytest
import torch

from leyden.data import CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as the `str` of Python 2, which is what the authors' files hold."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_python2_str(self, value):
        content = value if isinstance(value, bytes) else value.encode()
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_python2_str


def write(path, content):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    # the module as it was called when the files were made
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def rows(first, count):
    """Images first, first + 1, ...: red is all the number, green 100 in its first row, blue 200."""
    pixels = np.zeros((count, 3, 32, 32), dtype=np.uint8)
    pixels[:, 0] = np.arange(first, first + count)[:, None, None]
    pixels[:, 1, 0] = 100
    pixels[:, 2] = 200
    return pixels.reshape(count, 3072)


def write_cifar10(root):
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        labels = [(20 * number + i) % 10 for i in range(20)]
        write(
            root / name, {"batch_label": name, "labels": labels, "data": rows(20 * number, 20), "filenames": ["a.png"]}
        )
    write(root / "batches.meta", {"label_names": [f"class {i}" for i in range(10)], "num_vis": 3072})


def test_cifar10(tmp_path):
    write_cifar10(tmp_path)
    data = CIFAR(str(tmp_path), val_fraction=0.2)
    assert data.num_classes == 10
    assert data.class_names[3] == "class 3"
    train, val, test = (data.dataset(name) for name in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [80, 20, 20]
    red = torch.cat([train.tensors["input"], val.tensors["input"]])[:, 0, 5, 7]
    assert sorted(red.tolist()) == list(range(100))
    assert test.tensors["input"][:, 0, 0, 0].tolist() == list(range(100, 120))
    assert torch.equal(train.tensors["target"], train.tensors["input"][:, 0, 0, 0].long() % 10)
    assert val.tensors["target"].bincount().tolist() == [2] * 10

    image = test[0]["input"]
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image[0, 9, 9].item(), (100 / 255 - 0.4914) / 0.2470, atol=1e-5, rtol=0)
    torch.testing.assert_close(image[1, 0, 9].item(), (100 / 255 - 0.4822) / 0.2435, atol=1e-5, rtol=0)
    torch.testing.assert_close(image[1, 1, 9].item(), (0 - 0.4822) / 0.2435, atol=1e-5, rtol=0)
    torch.testing.assert_close(image[2, 9, 9].item(), (200 / 255 - 0.4465) / 0.2616, atol=1e-5, rtol=0)


def test_cifar100(tmp_path):
    for name, count in (("train", 200), ("test", 100)):
        fine = [i % 100 for i in range(count)]
        write(tmp_path / name, {"fine_labels": fine, "coarse_labels": [0] * count, "data": rows(0, count)})
    names = [f"fine {i}" for i in range(100)]
    write(tmp_path / "meta", {"fine_label_names": names, "coarse_label_names": ["coarse"]})
    data = CIFAR(str(tmp_path), num_classes=100, val_fraction=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert data.class_names == names
    assert data.dataset("val").tensors["target"].bincount().tolist() == [1] * 100
    torch.testing.assert_close(data.dataset("test")[51]["input"][0], torch.full((32, 32), 51 / 255))


def test_missing_files_are_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    (tmp_path / "batches.meta").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_4, batches\.meta"):
        CIFAR(str(tmp_path))
    with pytest.raises(ValueError, match="folder of CIFAR-100, but .* lacks train, test, meta"):
        CIFAR(str(tmp_path), num_classes=100)
    with pytest.raises(ValueError, match="num_classes must be 10 or 100, got 20"):
        CIFAR(str(tmp_path), num_classes=20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [0, 1], "data": rows(0, 3)}, "must hold 2 rows of 3072 bytes"),
        ({"labels": [0, 1], "data": rows(0, 2).astype(np.float32)}, "must hold 2 rows of 3072 bytes"),
        ({"labels": [0, 10], "data": rows(0, 2)}, r"must hold the labels 0\.\.9, but has 10"),
        ({"data": rows(0, 2)}, "no whole CIFAR-10 file: b'labels'"),
        ([1, 2], "no whole CIFAR-10 file"),
    ],
)
def test_foreign_content_is_refused(tmp_path, content, message):
    write_cifar10(tmp_path)
    write(tmp_path / "data_batch_2", content)
    with pytest.raises(ValueError, match=message):
        CIFAR(str(tmp_path)).setup("fit")


def test_a_cut_file_is_refused(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "test_batch"
    content = path.read_bytes()
    for cut in (b"", content[: len(content) // 2]):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="test_batch is no whole CIFAR-10 file"):
            CIFAR(str(tmp_path)).setup("fit")


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": Evil()}))
    with pytest.raises(ValueError, match=r"it asks for posix\.mkdir, where only numpy arrays may stand"):
        CIFAR(str(tmp_path))
    assert not (tmp_path / "was here").exists()
