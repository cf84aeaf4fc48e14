"""Every experiment takes the same steps on one process and on two."""

import csv
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from leyden.callbacks import LastCheckpoint
from leyden.cli import main

# Experiments that cannot be the same on two processes, and why: a reason of mathematics.
DIFFERENT: dict[str, str] = dict.fromkeys(
    ("optimization/adaptive_obgd", "optimization/obgd", "optimization/random_walk"),
    "one stream of transitions, one at a time",
) | {
    "batch/batchformer": "each process attends to its share of the batch",
    "batch/uds": "each process chooses from its share of the batch",
    "distillation/sinkd": "each process transports its share of the batch",
    "optimization/dfp16": "the exponent is that of the largest number in a process's share of the batch",
    "regularization/nested_co_teaching": "each process chooses the smallest losses of its share of the batch",
    "regularization/noisefit": "the size of the noise is that of the spread of a process's share of the batch",
    "weights/meta_dmoe": "each process adapts to the first samples of its share of the batch",
}


def fit(folder: Path, arguments: list[str]) -> dict[str, torch.Tensor]:
    """Fits, and returns how far each weight moved.

    Dropout draws and batch norm measures in each process on its own, by design; they are replaced in this process.
    """
    os.chdir(folder)
    nn.Dropout.forward = lambda self, x: x
    attention = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = (
        lambda query, key, value, attn_mask=None, dropout_p=0.0, *args, **kwargs: attention(
            query, key, value, attn_mask, 0.0, *args, **kwargs
        )
    )
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d):
        norm.forward = normalize_as_in_evaluation
    weights = {}

    def on_fit_start(self, trainer, pl_module):
        weights.update({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    LastCheckpoint.on_fit_start = on_fit_start
    assert main(arguments) == 0
    (last,) = Path("logs").rglob("last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    after = checkpoint.get("current_model_state", checkpoint["state_dict"])  # the former beside an average only
    return {name: after[name] - before for name, before in weights.items() if before.is_floating_point()}


def normalize_as_in_evaluation(self, x):
    return nn.functional.batch_norm(
        x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
    )


@pytest.mark.sampled(3)
def test_same_on_two_processes(experiment, quick_fit, run_processes, start_processes, tmp_path):
    if experiment in DIFFERENT:
        pytest.skip(DIFFERENT[experiment])
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    # in float64, because Adam divides by the size of the gradient: where that is tiny, rounding decides the direction
    arguments = quick_fit(experiment, "fit", "--trainer.precision=64-true")
    one = start_processes(fit, 1, folders[0], arguments).results()[0]
    two = run_processes(fit, 2, folders[1], [*arguments, "--trainer.devices=2", "--trainer.strategy=ddp"])
    for moves in two:
        assert moves.keys() == one.keys()
        error = torch.stack([(moves[name] - one[name]).square().sum() for name in one]).sum().sqrt()
        size = torch.stack([move.square().sum() for move in one.values()]).sum().sqrt()
        assert size > 0.0
        assert error < 1e-5 * size
    assert epoch_values(folders[1]) == pytest.approx(epoch_values(folders[0]), rel=1e-5)


def epoch_values(folder: Path) -> dict[str, float]:
    """What was logged of whole epochs and of the test; the loss of a step is that of the first process's share."""
    (path,) = folder.rglob("metrics.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.endswith("_epoch") or name.startswith(("val/", "test/"))]
    values = {(name, row["step"]): float(row[name]) for row in rows for name in names if row[name]}
    assert values
    return values
