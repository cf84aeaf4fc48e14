from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.data import Diabetes, HartmannDesigns, hartmann6
from leyden.methods import OfflineOptimization
from leyden.models import MLP


def make_trainer(folder):
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def test_a_linear_surrogate_leads_into_a_corner(tmp_path):
    slope = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    network = MLP(6, 1, ())
    with torch.no_grad():
        network.head.weight.copy_(slope)
    method = OfflineOptimization(network, num_designs=3, search_steps=20, search_lr=0.1)
    (metrics,) = make_trainer(tmp_path).test(method, datamodule=HartmannDesigns(num_designs=100), verbose=False)
    corner = hartmann6((slope > 0.0).float().unsqueeze(0)).item()
    assert metrics["test/design_value"] == pytest.approx(corner)
    assert metrics["test/design_best"] == pytest.approx(corner)


def test_the_search_begins_with_the_best_known_designs(tmp_path):
    data = HartmannDesigns(num_designs=100)
    method = OfflineOptimization(MLP(6, 1, (8,)), num_designs=5, search_steps=0)
    (metrics,) = make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    best = hartmann6(data.dataset("train").tensors["input"]).sort(descending=True).values[:5]
    assert metrics["test/design_value"] == pytest.approx(best.mean().item())
    assert metrics["test/design_best"] == pytest.approx(best[0].item())


def test_the_search_leaves_the_network_alone(tmp_path):
    method = OfflineOptimization(MLP(6, 1, (8,)), optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer, data = make_trainer(tmp_path), HartmannDesigns(num_designs=100)
    trainer.fit(method, datamodule=data)
    before = [p.clone() for p in method.parameters()]
    for p in method.parameters():
        p.grad = None
    trainer.test(method, datamodule=data, verbose=False)
    assert all(map(torch.equal, before, method.parameters()))
    assert all(p.grad is None for p in method.parameters())


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="num_designs must be at least 1 and search_steps at least 0, got 0 and 200"):
        OfflineOptimization(MLP(6, 1), num_designs=0)
    with pytest.raises(ValueError, match="search_lr must be positive, got 0"):
        OfflineOptimization(MLP(6, 1), search_lr=0.0)
    method = OfflineOptimization(MLP(10, 1))
    with pytest.raises(MisconfigurationException, match="needs data with true_value, .*, got Diabetes"):
        make_trainer(tmp_path).fit(method, datamodule=Diabetes(batch_size=8))
