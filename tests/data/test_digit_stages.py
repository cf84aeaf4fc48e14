"""Digits for runs of several stages, and files of tensors."""

import pytest
import torch

from leyden.data import Digits, DigitTasks, PseudoLabeledDigits, pack_tensors, read_tensors
from leyden.weights import pack_weights


def test_tasks_share_out_the_digits():
    whole = Digits()
    for split in ("train", "val", "test"):
        parts = [DigitTasks(task, test_task=task).dataset(split).tensors["target"] for task in range(5)]
        assert [part.unique().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
        assert sum(map(len, parts)) == len(whole.dataset(split))
    mixed = DigitTasks(1, num_tasks=2, test_task=0)
    assert mixed.dataset("train").tensors["target"].unique().tolist() == [5, 6, 7, 8, 9]
    assert mixed.dataset("test").tensors["target"].unique().tolist() == [0, 1, 2, 3, 4]
    assert [DigitTasks(task).num_classes for task in range(5)] == [2, 4, 6, 8, 10]
    assert mixed.num_classes == 10
    so_far = DigitTasks(2).dataset("test").tensors
    assert so_far["target"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(so_far["domain"], so_far["target"] // 2)


def test_pseudo_labels(tmp_path):
    plain = Digits().dataset("train").tensors
    few = PseudoLabeledDigits(100)
    assert torch.equal(few.dataset("train").tensors["input"], plain["input"][:100])
    assert torch.equal(few.dataset("predict").tensors["input"], plain["input"][100:])
    assert "target" not in few.dataset("predict").tensors

    output = torch.zeros(3, 10)
    output[0, 7] = 9.0  # probability 0.9989
    output[1, 2] = 2.0  # 0.45
    output[2, 4] = 9.0
    path = tmp_path / "predictions"
    path.write_bytes(pack_tensors({"output": output, "index": torch.tensor([5, 0, 1157])}))
    train = PseudoLabeledDigits(100, predictions=str(path)).dataset("train").tensors
    assert torch.equal(train["target"][:100], plain["target"][:100])
    assert train["target"][100:].tolist() == [7, 4]
    assert torch.equal(train["input"][100:], plain["input"][[105, 1257]])
    assert len(PseudoLabeledDigits(100, predictions=str(path), confidence=0.4).dataset("train")) == 103

    with pytest.raises(ValueError, match="predicts for other samples: an index is 1157, but 958 samples have no label"):
        PseudoLabeledDigits(300, predictions=str(path)).dataset("train")


def test_wrong_arguments():
    for arguments, message in [
        ({"num_tasks": 3}, "num_tasks must be 1, 2, 5 or 10, got 3"),
        ({"task": 5}, r"task must lie in 0..4, got 5"),
        ({"test_task": -1}, r"test_task must lie in 0..4, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            DigitTasks(**arguments)
    with pytest.raises(ValueError, match=r"num_labeled must lie in 1..199, got 200"):
        PseudoLabeledDigits(200, num_train=200)
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got 95"):
        PseudoLabeledDigits(confidence=95)


def test_files(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="there is no dataset file"):
        read_tensors(str(path))
    path.write_bytes(pack_tensors({"a": torch.arange(3)}))
    assert read_tensors(str(path), "a")["a"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="file has no 'b', only a"):
        read_tensors(str(path), "a", "b")
    path.write_bytes(pack_weights({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="file is no dataset file, it holds weights"):
        read_tensors(str(path))
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match="file is no safetensors file"):
        read_tensors(str(path))
    with pytest.raises(ValueError, match="equal length, got the lengths {'a': 1, 'b': 2}"):
        pack_tensors({"a": torch.zeros(1), "b": torch.zeros(2)})
