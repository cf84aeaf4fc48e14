import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leyden.data import Diabetes
from leyden.methods import ConvexReLU
from leyden.models import MLP

SETTINGS = {"num_arrangements": 6, "beta": 20.0, "rho": 30.0, "iterations": 20_000, "tol": 1e-4}


def fit(folder, network, **arguments):
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
    )
    method = ConvexReLU(network, **SETTINGS | arguments)
    trainer.fit(method, datamodule=Diabetes(batch_size=100, seed=0))
    return trainer, method


def objective(method, data):
    dataset = data.dataset("train")
    samples = [dataset[i] for i in range(len(dataset))]
    x = torch.stack([sample["input"] for sample in samples])
    y = torch.stack([sample["target"] for sample in samples])
    squares = sum(p.square().sum() for p in method.network.parameters())
    return 0.5 * (method.network(x) - y).square().sum() + 0.5 * SETTINGS["beta"] * squares


def test_no_direction_leads_down_and_the_start_does_not_matter(tmp_path):
    trainer, method = fit(tmp_path, MLP(10, 1, (12,)))
    assert trainer.global_step == 3
    assert not method.network.head.bias.any()
    # a stationary point of the network's own objective, up to the tolerance of the solver
    loss = objective(method, trainer.datamodule)
    gradients = torch.autograd.grad(loss, [method.network.body[0].weight, method.network.head.weight])
    used = method.network.head.weight[0] != 0.0
    assert 0 < used.sum() < 12
    assert gradients[1][0][used].abs().max() < 0.05
    trivial = 0.5 * sum(trainer.datamodule.dataset("train")[i]["target"].square() for i in range(310))
    assert loss < 0.9 * trivial  # and not that of a network which is 0
    _, again = fit(tmp_path, MLP(10, 1, (12,)))
    assert all(map(torch.equal, method.network.parameters(), again.network.parameters()))


def test_unfitting_networks_are_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"must have 2 \* num_arrangements = 12 neurons or more, got 8"):
        fit(tmp_path, MLP(10, 1, (8,)))
    for network in (MLP(10, 2, (12,)), MLP(10, 1, (12, 12)), MLP(10, 1, (12,), dropout=0.5), MLP(10, 1, ())):
        with pytest.raises(
            MisconfigurationException, match="needs a network of a linear layer, ReLU and a linear layer"
        ):
            fit(tmp_path, network)
