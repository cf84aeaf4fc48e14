"""Files of weights: written, loaded, handed to a fit, and refused where they do not fit."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from leyden.callbacks import InitialWeights
from leyden.methods import Classification
from leyden.models import MLP, pretrained
from leyden.weights import load_weights, pack_weights


def mlp(num_outputs=3, hidden=4):
    return MLP(in_features=2, num_outputs=num_outputs, hidden=[hidden])


@pytest.fixture
def source(tmp_path):
    network = mlp()
    (tmp_path / "w.safetensors").write_bytes(pack_weights(network.state_dict()))
    return network, str(tmp_path / "w.safetensors")


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_loaded(source):
    network, path = source
    assert_same(pretrained(mlp(), path), network)
    method = Classification(mlp())
    InitialWeights(path).build(method)
    assert_same(method.network, network)


def test_no_weights_change_nothing():
    method = Classification(mlp())
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    InitialWeights().build(method)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())


def test_a_head_grows(source):
    network, path = source
    method = Classification(mlp(num_outputs=5))
    new_rows = method.network.head.weight[3:].clone()
    InitialWeights(path, grow_head=True).build(method)
    assert torch.equal(method.network.head.weight[:3], network.head.weight)
    assert torch.equal(method.network.head.bias[:3], network.head.bias)
    assert torch.equal(method.network.head.weight[3:], new_rows)
    x = torch.randn(7, 2)
    torch.testing.assert_close(method.network(x)[:, :3], network(x))


def test_a_head_grows_to_the_file_and_the_data(source, tmp_path):
    network, path = source
    smaller = Classification(mlp(num_outputs=2))  # of the first round
    InitialWeights(path, grow_head=True).build(smaller)
    assert_same(smaller.network, network)
    method = Classification(mlp(num_outputs=2))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = SimpleNamespace(num_classes=7)
    method._trainer = trainer
    InitialWeights(path, grow_head=True).build(method)
    assert method.network.head.out_features == 7
    assert torch.equal(method.network.head.weight[:3], network.head.weight)
    first = Classification(mlp(num_outputs=2))
    first._trainer = trainer
    rows = first.network.head.weight.clone()
    InitialWeights(None, grow_head=True).build(first)
    assert first.network.head.out_features == 7
    assert torch.equal(first.network.head.weight[:2], rows)


def test_a_head_that_is_not_linear_does_not_grow():
    method = Classification(mlp())
    method.network.head = torch.nn.Sequential(method.network.head)
    with pytest.raises(ValueError, match="head is an nn.Linear, got a Sequential"):
        InitialWeights(None, grow_head=True).build(method)


def test_tied_weights(tmp_path):
    module = torch.nn.Linear(2, 2, bias=False)
    (tmp_path / "tied").write_bytes(pack_weights({"a": module.weight, "b": module.weight}))
    other = torch.nn.Module()
    other.a, other.b = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2, 2))
    load_weights(other, str(tmp_path / "tied"))
    assert torch.equal(other.a, module.weight)
    assert torch.equal(other.b, module.weight)


def test_refused(source, tmp_path):
    _, path = source
    with pytest.raises(
        ValueError, match=r"do not fit the MLP: 'head.weight' has shape \(3, 4\) in the file and \(5, 4\)"
    ):
        pretrained(mlp(num_outputs=5), path)
    with pytest.raises(ValueError, match=r"has shape \(3, 4\) in the file and \(2, 4\)"):
        InitialWeights(path).build(Classification(mlp(num_outputs=2)))
    with pytest.raises(ValueError, match=r"'body.*has shape \(4, 2\) in the file and \(5, 2\)"):
        InitialWeights(path, grow_head=True).build(Classification(mlp(hidden=5)))
    with pytest.raises(ValueError, match="do not fit the Linear: the file has no 'weight'"):
        load_weights(torch.nn.Linear(2, 2), path)
    (tmp_path / "more").write_bytes(pack_weights({"weight": torch.ones(1, 1), "x": torch.ones(1)}))
    with pytest.raises(ValueError, match="the Linear has no 'x'"):
        load_weights(torch.nn.Linear(1, 1, bias=False), str(tmp_path / "more"))
    with pytest.raises(FileNotFoundError, match="there is no file of weights nowhere"):
        pretrained(mlp(), "nowhere")
    (tmp_path / "text").write_text("nothing like it")
    with pytest.raises(ValueError, match="text is no safetensors file"):
        pretrained(mlp(), str(tmp_path / "text"))
