from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import softplus

from leyden.data import Digits
from leyden.losses import KLDRO
from leyden.methods import AdversarialTraining, Classification
from leyden.models import MLP, ConvNet

BATCH = {
    "input": torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
    "target": torch.tensor([0, 1, 1, 0, 1, 0]),
    "index": torch.arange(6),
}
SETTINGS = {"eps": 0.3, "step_size": 0.08, "bounds": None}


def fit(folder, method, *callbacks, **kwargs):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **kwargs,
    )
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=64, seed=0))
    return trainer


def linear():
    torch.manual_seed(0)
    return MLP(4, 2, ())


def test_loss_and_gradient_at_the_exact_maximum():
    # two classes, linear: the worst point of the ball has the margin m - eps * |w0 - w1|, in the sum of magnitudes
    method = AdversarialTraining(linear(), **SETTINGS)
    attacked = BATCH | {"input": method.attack(BATCH)}
    loss = method.loss_terms(attacked, method.compute(attacked))["task"]
    weight, bias = (p.detach().double().requires_grad_() for p in method.network.head.parameters())
    sign = 1.0 - 2.0 * BATCH["target"].double()
    x, slope = BATCH["input"].flatten(1).double(), weight[0] - weight[1]
    margin = sign * (x @ slope + bias[0] - bias[1]) - 0.3 * slope.abs().sum()
    expected = softplus(-margin).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, [method.network.head.weight, method.network.head.bias])
    for ours, exact in zip(gradients, torch.autograd.grad(expected, [weight, bias]), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-7)
    soft = BATCH | {"target": nn.functional.one_hot(BATCH["target"], 2).float()}
    torch.testing.assert_close(method.attack(soft), attacked["input"])
    torch.testing.assert_close(
        method.loss_terms(soft | {"input": attacked["input"]}, method.compute(attacked))["task"], loss
    )


def test_robust_accuracy_of_a_linear_network():
    method = AdversarialTraining(linear(), **SETTINGS)
    weight, bias = method.network.head.weight.detach(), method.network.head.bias.detach()
    slope = weight[0] - weight[1]
    margin = (1.0 - 2.0 * BATCH["target"]) * (BATCH["input"].flatten(1) @ slope + bias[0] - bias[1])
    right = (margin > 0.3 * slope.abs().sum()).double()
    assert 0.0 < right.mean() < (margin > 0).double().mean()  # the attack changes it, and leaves some
    with torch.inference_mode():
        batch = {key: value.clone() for key, value in BATCH.items()}
        method.eval().validation_step(batch, 0)
        values = method.metrics["val"].compute()
    assert values["val/robust_accuracy"].item() == pytest.approx(right.mean().item())
    assert values["val/accuracy"].item() == pytest.approx((margin > 0).double().mean().item())
    worst = min(right[BATCH["target"] == label].mean().item() for label in (0, 1))
    assert values["val/worst_class_robust_accuracy"].item() == pytest.approx(worst)


def test_the_attack_leaves_the_network_as_it_is():
    method = AdversarialTraining(ConvNet(1, 10, width=4, dropout=0.5))
    method.network.body[0].eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    batch = BATCH | {"input": torch.rand(6, 1, 8, 8)}
    assert torch.equal(method.attack(batch), method.attack(batch))  # without dropout
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes
    assert all(p.grad is None for p in method.parameters())


def test_aggregate_is_of_training_only():
    method = AdversarialTraining(linear(), aggregate=KLDRO(temperature=0.1))
    outputs = method.compute(BATCH)
    losses = nn.functional.cross_entropy(outputs.logits, BATCH["target"], reduction="none")
    assert method.loss_terms(BATCH, outputs)["task"] == KLDRO(temperature=0.1)(losses)
    assert method.eval().loss_terms(BATCH, outputs)["task"] == losses.mean()


class Inputs(Callback):
    def __init__(self):
        self.found = []

    def on_after_backward(self, trainer, pl_module):
        self.found.append(pl_module.seen)


class Spy(AdversarialTraining):
    def compute(self, batch):
        self.seen = batch["input"].detach()
        return super().compute(batch)


def test_a_ball_of_radius_zero_is_plain_training(tmp_path):
    methods = []
    for make in (Classification, partial(AdversarialTraining, eps=0.0)):
        torch.manual_seed(0)
        methods.append(make(MLP(64, 10, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1)))
        fit(tmp_path, methods[-1])
    assert all(map(torch.equal, *(method.network.parameters() for method in methods)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_sees_attacked_inputs(norm, tmp_path):
    seen = []
    for steps in (0, 3):  # starts are random, and the same in both
        inputs = Inputs()
        fit(tmp_path, Spy(MLP(64, 10, (8,)), norm=norm, eps=0.2, steps=steps, step_size=0.1), inputs, max_steps=1)
        seen.append(inputs.found[0])
    data = Digits(batch_size=16, num_train=64, seed=0)
    data.setup("fit")
    clean = next(iter(data.train_dataloader()))["input"]
    order = 2 if norm == "l2" else torch.inf
    for inputs in seen:
        distances = (inputs - clean).flatten(1).norm(order, dim=1)
        assert distances.min() > 0.05
        assert distances.max() < 0.2001
    assert not torch.equal(*seen)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="norm must be 'l2' or 'linf', got 'l1'"):
        AdversarialTraining(linear(), norm="l1")
    with pytest.raises(ValueError, match="eps must be finite"):
        AdversarialTraining(linear(), eps=float("inf"))
    with pytest.raises(ValueError, match="set its reduction to 'none', got 'mean'"):
        AdversarialTraining(linear(), loss=nn.CrossEntropyLoss())
    method = AdversarialTraining(linear())
    with pytest.raises(MisconfigurationException, match="has samples without"):
        method.loss_terms(BATCH | {"labeled": torch.ones(6, dtype=torch.bool)}, method.compute(BATCH))
    with pytest.raises(ValueError, match="needs the batch keys"):
        method.loss_terms({"input": BATCH["input"]}, method.compute(BATCH))
