"""Fits with memory per sample, an average or ghosts: killed and resumed, on one process and on two, without sizes."""

import functools
import os
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from leyden.callbacks import MESA, SAF, EarlyLearningRegularization, ExactResume, GhostBatchNorm, LastCheckpoint
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet

PARTS = {
    "elr": EarlyLearningRegularization,
    "saf": functools.partial(SAF, 0.5, delay=1, start_epoch=0),
    "mesa": functools.partial(MESA, 0.5, decay=0.8, start_epoch=0),
    "ghost_bn": functools.partial(GhostBatchNorm, 4),
}


class KilledError(Exception):
    pass


class KillBefore(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


def fit(folder, *parts, stop=None, resume=False, seed=0, dropout=0.0, **data):
    """Six epochs of two steps; 8 of the 40 samples are left over in each."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(seed)
    network = ConvNet(width=2, dropout=dropout) if "ghost_bn" in parts else MLP(64, 10, (16,), dropout=dropout)
    method = Classification(network, optimizer=functools.partial(torch.optim.SGD, lr=0.2, momentum=0.9))
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=DDPStrategy(process_group_backend="gloo") if world_size > 1 else "auto",
        max_epochs=6,
        callbacks=[ExactResume(), *(PARTS[part]() for part in parts), KillBefore(stop), LastCheckpoint(1)],
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = data or {"datamodule": Digits(batch_size=16, eval_batch_size=90, num_train=40, seed=1)}
    trainer.fit(method, **data, ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{number}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), ("saf", "elr", "mesa")], ids="+".join)
def test_killed_and_resumed_to_the_same_bits(tmp_path, parts):
    fit(tmp_path / "whole", *parts, dropout=0.1)
    # in the third epoch, at the edge to the fifth, in the sixth; each time with other random numbers at the start
    for number, stop in enumerate([5, 8, 11]):
        with pytest.raises(KilledError):
            fit(tmp_path / "cut", *parts, stop=stop, resume=number > 0, seed=number, dropout=0.1)
    fit(tmp_path / "cut", *parts, resume=True, seed=9, dropout=0.1)
    whole, cut = (torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert_same(whole, cut)
    assert whole["global_step"] == 12


@pytest.mark.parametrize("parts", [("elr",), ("saf",), ("mesa",), ("ghost_bn",)], ids="+".join)
def test_two_processes_are_one(run_processes, tmp_path, parts):
    reference = fit(tmp_path / "alone", *parts)
    (tmp_path / "two").mkdir()
    results = run_processes(fit, 2, tmp_path / "two", *parts)
    for result in results:
        for name, tensor in reference.items():
            if "running" not in name and "num_batches" not in name:  # each process has its own ghosts to follow
                torch.testing.assert_close(result[name], tensor, rtol=0, atol=2e-6)
    if parts[0] in ("elr", "saf"):
        alone, two = (torch.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("alone", "two"))
        key = {"elr": "EarlyLearningRegularization", "saf": "SAF"}[parts[0]]
        torch.testing.assert_close(two["callbacks"][key], alone["callbacks"][key], rtol=0, atol=2e-5)


class NoClasses(Digits):
    num_classes = None


@pytest.mark.parametrize("part", ["elr", "saf"])
def test_sizes_must_be_known(tmp_path, part):
    name = type(PARTS[part]()).__name__
    loader = DataLoader([{"input": torch.zeros(64), "target": 0, "index": 0}] * 4)
    with pytest.raises(MisconfigurationException, match=f"{name} keeps .* num_classes, but the fit has no DataModule"):
        fit(tmp_path, part, train_dataloaders=loader, val_dataloaders=loader)
    with pytest.raises(MisconfigurationException, match=f"{name} keeps .* but NoClasses lacks one of them"):
        fit(tmp_path, part, datamodule=NoClasses())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_can_be_tested_with_and_without_the_part(tmp_path, part):
    state = fit(tmp_path, part)
    results = []
    for callbacks in ([PARTS[part]()], []):
        network = ConvNet(width=2) if part == "ghost_bn" else MLP(64, 10, (16,))
        trainer = Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            default_root_dir=tmp_path,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        method, path = Classification(network), tmp_path / "checkpoints/last.ckpt"
        results += trainer.test(method, datamodule=Digits(), ckpt_path=path, verbose=False, weights_only=True)
        torch.testing.assert_close(method.state_dict()["network.head.weight"], state["network.head.weight"])
    assert results[0] == results[1]
