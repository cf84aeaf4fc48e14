"""Files of weights, read one tensor at a time."""

import io
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from leyden.weights import CheckpointFile, average

STATE = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "counter": torch.tensor(2**40),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
}


def same(file, state):
    assert list(file) == list(state)
    for name, tensor in state.items():
        assert file[name].dtype == file.dtype(name) == tensor.dtype
        assert torch.equal(file[name], tensor)


def test_safetensors(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors", metadata={"leyden": "weights"})
    file = CheckpointFile(tmp_path / "a.safetensors")
    same(file, {name: STATE[name] for name in file})
    assert len(file) == len(STATE)
    assert file.header == {"leyden": "weights"}
    assert not file.is_lightning
    assert file.num_bytes == sum(tensor.nbytes for tensor in STATE.values())


def test_lightning(tmp_path):
    state = STATE | {"turned": torch.arange(6.0).view(2, 3).t(), "part": torch.arange(9.0)[2:5]}
    state["tied"] = state["a.weight"]
    content = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.6.0", "optimizer": [torch.ones(99)]}
    torch.save(content, tmp_path / "a.ckpt")
    file = CheckpointFile(tmp_path / "a.ckpt")
    same(file, state)
    assert file.is_lightning
    assert file.header["epoch"] == 3
    assert file.place("tied") == file.place("a.weight") != file.place("turned")
    result = average([file, file])
    assert result["tied"] is result["a.weight"]
    with pytest.raises(KeyError):
        file["optimizer"]


def test_plain_state_dict(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    same(CheckpointFile(tmp_path / "a.pt"), STATE)


def test_each_look_up_is_a_new_tensor(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    file = CheckpointFile(tmp_path / "a.pt")
    file["a.weight"].zero_()
    assert torch.equal(file["a.weight"], STATE["a.weight"])


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is neither a safetensors file nor a checkpoint"),
        (b'{"shards": "last-0.shards"}', "is the index of a sharded checkpoint: write its weights into one file first"),
        (b"what is this? nothing at all", "is neither a safetensors file nor a checkpoint"),
        (pickle.dumps({"a": 1}), "is neither a safetensors file nor a checkpoint"),
        (safetensors.torch.save(STATE)[:-5], "was cut off"),
        (saved({"state_dict": STATE})[:-200], "is damaged"),
        (saved({"epoch": 3}), "has no state_dict of tensors"),
        (saved({"state_dict": STATE, "more": Path("x")}), "holds more than tensors and plain values"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.ckpt {message}"):
        CheckpointFile(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of weights"):
        CheckpointFile(tmp_path / "a.ckpt")
