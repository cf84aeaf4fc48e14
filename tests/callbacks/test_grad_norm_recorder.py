import csv
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.callbacks import GradNormRecorder
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP
from leyden.optim import refined_schedule, smooth_grad_norms


class Watch(Callback):
    """The gradients as they are after clipping, which multiplies them by ``clip / norm``."""

    def __init__(self):
        self.clipped = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.network.head.weight.grad is not None:
            self.clipped.append([p.grad.clone() for p in pl_module.parameters()])


def fit(folder, recorder, max_epochs=3, **arguments):
    torch.manual_seed(0)
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[recorder, watch],
        enable_checkpointing=False,
        **arguments,
    )
    method = Classification(MLP(64, 10, (8,)), optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    trainer.fit(method, datamodule=Digits(batch_size=16, num_train=64, seed=0))
    return watch


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [[float(row[name]) for row in rows] for name in ("grad_norm", "schedule")]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_records_the_whole_gradient_and_its_schedule(norm, tmp_path):
    recorder = GradNormRecorder(norm, tau=0.4)
    gradients = fit(tmp_path, recorder).clipped
    flat = [torch.cat([g.flatten().double() for g in step]) for step in gradients]
    expected = [g.abs().sum().item() if norm == "l1" else g.square().sum().sqrt().item() for g in flat]
    assert recorder.norms.tolist() == pytest.approx(expected, rel=1e-5)
    norms, schedule = read(tmp_path / "grad_norms.csv")
    assert norms == recorder.norms.tolist()
    assert len(norms) == 12
    smooth = smooth_grad_norms(norms, 0.4)
    weights = 1.0 / smooth if norm == "l1" else 1.0 / smooth.square()
    assert schedule == pytest.approx(refined_schedule(smooth, weights=weights).tolist())


def test_before_clipping(tmp_path):
    free, clipped = GradNormRecorder(), GradNormRecorder(path=str(tmp_path / "some" / "where.csv"))
    fit(tmp_path / "free", free)
    watch = fit(tmp_path / "clipped", clipped, gradient_clip_val=0.1)
    assert clipped.norms[0] == free.norms[0] > 0.5
    for gradient in watch.clipped:
        assert torch.cat([g.flatten() for g in gradient]).norm().item() == pytest.approx(0.1, rel=1e-3)
    assert len(read(tmp_path / "some" / "where.csv")[0]) == 12


def test_after_accumulation(tmp_path):
    whole, parts = GradNormRecorder(), GradNormRecorder()
    fit(tmp_path / "whole", whole)
    fit(tmp_path / "parts", parts, accumulate_grad_batches=2)
    torch.testing.assert_close(parts.norms, whole.norms)


def test_goes_on_after_cuts(run):
    whole = run("whole", callbacks=lambda: [GradNormRecorder()])
    cut = run("cut", [3, 10, 18], callbacks=lambda: [GradNormRecorder()], every_n_steps=2)
    files = [(folder / "grad_norms.csv").read_text() for folder in (whole.folder, cut.folder)]
    assert files[0] == files[1]
    assert len(files[0].splitlines()) == 1 + 24


def test_forgets_an_earlier_fit(tmp_path):
    recorder = GradNormRecorder()
    fit(tmp_path, recorder)
    fit(tmp_path, recorder, max_epochs=1)
    assert len(recorder.norms) == 4


def test_room_for_more_and_overflowed_steps(tmp_path):
    recorder = GradNormRecorder(tau=0.0)
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p, torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    for step in range(1500):
        p.grad = torch.full((2,), float("inf") if step == 3 else step + 1.0)
        recorder.on_before_optimizer_step(None, None, optimizer)
    assert recorder.norms[1499].item() == pytest.approx(1500 * 2**0.5)
    recorder.on_fit_end(SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path), None)
    norms, schedule = read(tmp_path / "grad_norms.csv")
    assert len(norms) == len(schedule) == 1499
    assert norms[3] == pytest.approx(5 * 2**0.5)


class TwoOptimizers(LightningModule):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def test_bad_set_up():
    with pytest.raises(ValueError, match="norm must be 'l1' or 'l2', got 'max'"):
        GradNormRecorder("max")
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\], got 2.0"):
        GradNormRecorder(tau=2.0)
    with pytest.raises(MisconfigurationException, match="of one optimizer, but there are 2"):
        GradNormRecorder().on_fit_start(SimpleNamespace(optimizers=[1, 2]), TwoOptimizers())
