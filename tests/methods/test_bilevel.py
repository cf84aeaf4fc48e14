import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from leyden.callbacks import Mixup
from leyden.data import Wine
from leyden.methods import Bilevel
from leyden.methods.bilevel import maid
from leyden.models import MLP


class Values(Callback):
    def __init__(self):
        self.upper, self.log_l2 = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        val = trainer.datamodule.dataset("val").tensors
        logits = pl_module.network(val["input"].double())
        self.upper.append(functional.cross_entropy(logits, val["target"]).item())
        self.log_l2.append(pl_module.log_l2.clone())


@pytest.fixture
def fit(make_trainer):
    def fit(method, *callbacks, steps=5):
        options = {"precision": "64-true", "max_epochs": -1, "limit_val_batches": 0}
        trainer = make_trainer(*callbacks, max_steps=steps, **options)
        trainer.fit(method, datamodule=Wine(batch_size=16, val_fraction=0.3, seed=0))
        return trainer

    return fit


def test_one_penalty_is_that_of_scikit_learn(fit):
    method = Bilevel(MLP(13, 3, ()), log_l2=-2.0, epsilon=1e-6, delta=1e-6, step_size=1e-9)
    trainer = fit(method, steps=1)
    train = trainer.datamodule.dataset("train").tensors
    x = torch.cat([train["input"], torch.ones(len(train["input"]), 1)], 1).double().numpy()
    strength = 1.0 / (len(x) * torch.tensor(-2.0).exp().item())
    expected = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=5000).fit(x, train["target"])
    weights = torch.cat([method.network.head.weight, method.network.head.bias[:, None]], 1).detach()
    torch.testing.assert_close(weights, torch.from_numpy(expected.coef_), atol=1e-5, rtol=1e-4)


def test_the_validation_loss_falls(fit):
    values = Values()
    method = Bilevel(MLP(13, 3, ()), step_size=10.0)
    trainer = fit(method, values)
    assert trainer.global_step == 5
    assert all(later < earlier for earlier, later in zip(values.upper, values.upper[1:], strict=False))
    assert values.upper[-1] < 0.8 * values.upper[0]
    assert not torch.equal(values.log_l2[0], values.log_l2[1])


def test_features_of_a_network_stay_as_they_are(fit):
    network = MLP(13, 3, (5,), dropout=0.5)
    before = network.body[0].weight.detach().clone()
    method = Bilevel(network, step_size=10.0)
    fit(method, steps=2)
    assert method.log_l2.shape == (6,)
    assert torch.equal(network.body[0].weight, before.double())


def test_soft_targets_make_the_same_problem():
    x, target = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    start = {"x0": torch.zeros(4, 3).double(), "theta0": torch.full((4,), -2.0).double()}
    hard = maid(x, target, x, target, **start)
    soft = maid(x, functional.one_hot(target).float(), x, functional.one_hot(target).float(), **start)
    hard.step()
    soft.step()
    torch.testing.assert_close(hard.theta, soft.theta)


def test_unfitting_set_ups_are_refused(fit):
    network = MLP(13, 3, ())
    network.head = torch.nn.Linear(13, 3, bias=False)
    with pytest.raises(MisconfigurationException, match="head is a torch.nn.Linear with bias, got Linear"):
        fit(Bilevel(network))
    with pytest.raises(MisconfigurationException, match="callbacks cannot change batches or add loss terms"):
        fit(Bilevel(MLP(13, 3, ())), Mixup())
    loader = torch.utils.data.DataLoader([{"input": torch.rand(13), "target": 0}])
    with pytest.raises(MisconfigurationException, match=r"leyden.data.DataModule, got NoneType"):
        Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False).fit(
            Bilevel(MLP(13, 3, ())), loader, loader
        )


def test_a_checkpoint_can_be_read_without_a_trainer(fit, tmp_path):
    method = Bilevel(MLP(13, 3, ()), step_size=10.0)
    fit(method, steps=1).save_checkpoint(tmp_path / "fit.ckpt")
    read = Bilevel.load_from_checkpoint(tmp_path / "fit.ckpt", weights_only=True, network=MLP(13, 3, ()).double())
    assert torch.equal(read.log_l2, method.log_l2)
    assert torch.equal(read.network.head.weight, method.network.head.weight)
