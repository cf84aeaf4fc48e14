"""What the strategy says of steps that it cannot run, and of files that it does not write; buffers."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import LazyCheckpointing
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet
from leyden.plugins import FSDP2Strategy, LazyAsyncCheckpointIO


class WeightPenalty(MethodCallback):
    """Reads a weight in the step, outside of its layer."""

    def loss_terms(self, method, batch, outputs, terms):
        layer = next(part for part in method.network.modules() if isinstance(part, nn.Conv2d))
        return terms | {"penalty": layer.weight.square().sum()}


def fit(folder: Path, *callbacks, plugins=(), shard_blocks=True):
    seed_everything(0, verbose=False)
    method = Classification(ConvNet(1, 10, width=4))
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=FSDP2Strategy(shard_blocks=shard_blocks),
        max_steps=3,
        limit_val_batches=0,
        callbacks=list(callbacks),
        plugins=list(plugins),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, Digits(num_train=64, batch_size=16))
    return trainer, method


def weights_in_the_step(folder):
    with pytest.raises(MisconfigurationException) as caught:
        fit(folder, WeightPenalty())
    trainer, _ = fit(folder, WeightPenalty(), shard_blocks=False)
    return str(caught.value), trainer.callback_metrics["train/penalty_epoch"].item()


def lazy(folder):
    with pytest.raises(MisconfigurationException) as caught:
        fit(folder, LazyCheckpointing(), plugins=[LazyAsyncCheckpointIO()])
    return str(caught.value)


def buffers(folder):
    trainer, method = fit(folder)
    trained = [buffer.clone() for buffer in method.buffers()]
    trainer.test(method, trainer.datamodule, verbose=False)
    with pytest.raises(TypeError, match="storage_options must be None"):
        trainer.strategy.save_checkpoint({}, folder / "last.ckpt", storage_options={})
    return trained, list(method.buffers())


def test_a_step_that_reads_sharded_weights_is_told_what_to_do(run_processes, tmp_path):
    for message, penalty in run_processes(weights_in_the_step, 2, tmp_path):
        assert message.startswith(
            "the step reads sharded weights outside of their layers: set trainer.strategy.shard_blocks to false"
        )
        assert penalty > 0.0


def test_checkpoints_of_one_process_are_refused(run_processes, tmp_path):
    for message in run_processes(lazy, 2, tmp_path):
        assert "take LazyAsyncCheckpointIO and LazyCheckpointing out" in message


def test_buffers_are_those_of_the_first_process(run_processes, tmp_path):
    (trained, tested), (trained_by_second, tested_by_second) = run_processes(buffers, 2, tmp_path)
    assert not all(torch.equal(one, other) for one, other in zip(trained, trained_by_second, strict=True))
    for first, one, other in zip(trained, tested, tested_by_second, strict=True):
        assert torch.equal(one, first)
        assert torch.equal(other, first)
