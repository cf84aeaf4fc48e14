import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import GhostBatchNorm
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.nn import GhostBatchNorm2d


def fit(network, *callbacks, **kwargs):
    torch.manual_seed(0)
    method = Classification(network)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=32, seed=1))
    return method


def networks(count):
    made = []
    for _ in range(count):
        torch.manual_seed(0)
        made.append(ConvNet(width=2))
    return made


def test_ghosts_of_a_fit():
    plain, whole, ghosts = networks(3)
    fit(plain)
    fit(whole, GhostBatchNorm(16))
    fit(ghosts, GhostBatchNorm(4))
    kinds = [type(module) for module in ghosts.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [GhostBatchNorm2d] * 3
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
        assert not torch.equal(tensor, ghosts.state_dict()[name])
    assert ghosts.body[0][1].num_batches_tracked == 2 * 4


def test_a_second_fit_takes_the_new_size():
    (network,) = networks(1)
    fit(network, GhostBatchNorm(4))
    fit(network, GhostBatchNorm(8))
    assert network.body[0][1].ghost_batch_size == 8


def test_bad_setups_are_refused():
    with pytest.raises(ValueError, match="ghost_batch_size must be at least 2, got 1"):
        GhostBatchNorm(1)
    with pytest.raises(ValueError, match="no module of MLP is to be replaced"):
        fit(MLP(64, 10, (4,)), GhostBatchNorm())


def test_synchronised_batch_norm_is_refused():
    callback = GhostBatchNorm()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        strategy=DDPStrategy(process_group_backend="gloo"),
        sync_batchnorm=True,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.raises(
        MisconfigurationException, match=r"set trainer.sync_batchnorm to false or remove GhostBatchNorm"
    ):
        callback.setup(trainer, Classification(networks(1)[0]), "fit")
