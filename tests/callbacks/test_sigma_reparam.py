import pytest
import torch

from leyden.callbacks import SigmaReparametrization
from leyden.data import Digits, PydocTopics
from leyden.methods import Classification, LanguageModeling
from leyden.models import GPT, ConvNet, ViT


def fit(make_trainer, method, data, *callbacks, **kwargs):
    trainer = make_trainer(*callbacks, max_epochs=1, limit_train_batches=2, limit_val_batches=1, **kwargs)
    trainer.fit(method, datamodule=data)
    return trainer


def gammas(network):
    return {name.split(".parametrizations")[0] for name, _ in network.named_parameters() if name.endswith(".gamma")}


def test_gpt_and_vit(make_trainer):
    torch.manual_seed(0)
    gpt = GPT(256, 8, dim=8, depth=1, num_heads=2)
    before = gpt(torch.arange(8).unsqueeze(0)).detach()
    callback = SigmaReparametrization(skip=["head"])
    method = LanguageModeling(gpt)
    fit(make_trainer, method, PydocTopics(context=8, batch_size=4), callback, max_steps=0)
    torch.testing.assert_close(gpt.eval()(torch.arange(8).unsqueeze(0)), before, rtol=0, atol=1e-5)
    layers = ["attention.k_proj", "attention.out_proj", "attention.q_proj", "attention.v_proj", "fc1", "fc2"]
    assert sorted(gammas(gpt)) == [f"blocks.0.{layer}" for layer in layers]
    vit = ViT(8, 4, 10, in_channels=1, dim=8, depth=1, num_heads=2)
    SigmaReparametrization().build(Classification(vit))
    assert sorted(gammas(vit)) == [*(f"blocks.0.{layer}" for layer in layers), "head", "patch_embedding"]


def test_one_iteration_per_step_and_decay_left_out(make_trainer, make_data):
    network = ConvNet(1, 10, width=2)
    method = Classification(network, param_groups={"*.gamma": {"weight_decay": 0.0}})
    callback = SigmaReparametrization()
    calls = []
    callback.build(method)
    reparam = network.head.parametrizations.weight[0]
    reparam.register_forward_hook(lambda *_: calls.append(reparam.training))
    trainer = fit(make_trainer, method, Digits(batch_size=8), callback)
    assert calls == [True, True, False]  # two steps, then one batch of validation
    decays = {group["weight_decay"]: len(group["params"]) for group in trainer.optimizers[0].param_groups}
    assert decays[0.0] == len(gammas(network))


def test_unknown_layer_is_refused(make_trainer, make_data, make_method):
    with pytest.raises(ValueError, match="skip: there is no module 'haed' in MLP; near it: head"):
        fit(make_trainer, make_method(), make_data(), SigmaReparametrization(skip=["haed"]))
