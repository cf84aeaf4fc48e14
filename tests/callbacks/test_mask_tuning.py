import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import GhostBatchNorm, LoRA, MaskTuning
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet


class Modes(Callback):
    def __init__(self):
        self.training = set()

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.training |= {module.training for module in pl_module.modules() if isinstance(module, nn.BatchNorm2d)}


def test_masks_are_learned_and_all_else_stays(make_trainer):
    torch.manual_seed(0)
    method = Classification(ConvNet(1, 10, width=4), optimizer=lambda groups: torch.optim.Adam(groups, lr=3e-3))
    before = {name: tensor.clone() for name, tensor in method.network.state_dict().items()}
    modes = Modes()
    trainer = make_trainer(MaskTuning(), modes, max_epochs=2, limit_val_batches=1)
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=64, seed=0))
    after = method.network.state_dict()
    for name, tensor in before.items():
        kept = (
            after[name.removesuffix("weight") + "parametrizations.weight.original"]
            if name not in after
            else after[name]
        )
        assert torch.equal(kept, tensor), name  # running statistics, too
    assert modes.training == {False}  # also in the epoch behind the validation
    shares = [(layer.weight != 0).float().mean() for layer in method.network.modules() if isinstance(layer, nn.Conv2d)]
    assert all(0.0 < share < 1.0 for share in shares)


def test_skipped_norms_are_trained(make_trainer):
    network = ConvNet(1, 10, width=4)
    norm, name = next((layer, name) for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    trainer = make_trainer(MaskTuning(skip=[name]), max_steps=1, max_epochs=1, limit_val_batches=0)
    trainer.fit(Classification(network), datamodule=Digits(batch_size=16, num_train=64, seed=0))
    assert not torch.equal(norm.running_mean, before)
    assert norm.weight.requires_grad


def test_cut_runs_end_in_the_same_bits(run, assert_same_runs, make_method):
    def callbacks():
        return [MaskTuning(skip=["head"])]

    assert_same_runs(run("whole", callbacks=callbacks), run("cut", [2, 6, 15], callbacks=callbacks))


def test_bad_input(make_trainer, make_method, make_data):
    for callbacks, line in (
        (
            [MaskTuning(["tail"])],
            "MaskTuning: match: 'tail' matches none of the linear layers and convolutions, body.0",
        ),
        ([MaskTuning(init=0.0)], "MaskTuning: init must be larger than threshold, got init=0.0 and threshold=0.005"),
        ([LoRA(2), MaskTuning()], "MaskTuning: .* has LoRA's updates: apply one of the two"),
    ):
        with pytest.raises(MisconfigurationException, match=line):
            make_trainer(*callbacks).fit(make_method(), datamodule=make_data())
    for callbacks in ([MaskTuning(), GhostBatchNorm(8)], [GhostBatchNorm(8), MaskTuning()]):
        with pytest.raises(MisconfigurationException, match="would not be a ghost batch norm: remove one of the two"):
            make_trainer(*callbacks).fit(Classification(ConvNet(1, 10, width=4)), datamodule=Digits(batch_size=16))
