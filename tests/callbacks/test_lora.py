import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import InitialWeights, LoRA
from leyden.cli.export_formats import bake_parametrizations
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.nn import LoRALinear
from leyden.weights import pack_weights


def fit(make_trainer, network, *callbacks):
    trainer = make_trainer(*callbacks, max_steps=2, limit_val_batches=1)
    trainer.fit(Classification(network), datamodule=Digits(num_train=24, batch_size=8, seed=1))
    return trainer


def test_tunes_weights_from_a_file(make_trainer, tmp_path):
    torch.manual_seed(0)
    trained = MLP(64, 10, (8,))
    (tmp_path / "trained.safetensors").write_bytes(pack_weights(trained.state_dict()))
    network = MLP(64, 10, (8,))
    initial = InitialWeights(tmp_path / "trained.safetensors")
    trainer = fit(make_trainer, network, initial, LoRA(rank=2, skip=["head"]))
    layer = network.body[0]
    assert isinstance(layer, LoRALinear)
    assert torch.equal(layer.weight, trained.body[0].weight)
    assert torch.equal(layer.bias, trained.body[0].bias)
    assert layer.lora_b.any()
    assert not torch.equal(network.head.weight, trained.head.weight)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in (layer.lora_a, layer.lora_b, network.head.weight, network.head.bias)}
    x = torch.rand(5, 64)
    tuned = network(x)
    bake_parametrizations(network)  # what is exported
    assert network.state_dict().keys() == trained.state_dict().keys()
    torch.testing.assert_close(network(x), tuned, rtol=1e-5, atol=1e-5)


def test_network_without_the_layers(make_trainer):
    with pytest.raises(MisconfigurationException, match="LoRA: .* matches none of the linear layers"):
        fit(make_trainer, ConvNet(1, 10, width=2), LoRA(skip=["head"]))
