import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.functional import normalize

from leyden.callbacks import ExactResume
from leyden.core import sample_keys
from leyden.data import Digits, GaussianNoise
from leyden.losses import coding_rate, doubly_stochastic_membership, mcr2_loss
from leyden.methods import ManifoldLinearizing
from leyden.models import MLP, ConvNet


def make(**arguments) -> ManifoldLinearizing:
    torch.manual_seed(0)
    return ManifoldLinearizing(MLP(64, 6, (16,)), 10, GaussianNoise(0.1), **arguments)


class Noted(ManifoldLinearizing):
    """Notes terms and what they are made of."""

    def __init__(self, **arguments) -> None:
        torch.manual_seed(0)
        super().__init__(MLP(64, 6, (16,)), 10, GaussianNoise(0.1), **arguments)
        self.seen = []

    def loss_terms(self, batch, outputs):
        terms = super().loss_terms(batch, outputs)
        if self.training:
            self.seen.append((self.current_epoch, terms, self.expected(batch)))
        return terms

    @torch.no_grad()
    def expected(self, batch):
        body, head, membership = self.network.features, self.network.head, self.attached["membership"]
        z = normalize(head(body(batch["input"])).double(), dim=1)
        if self.current_epoch >= 2:
            shares = doubly_stochastic_membership(
                normalize(membership(body(batch["input"])).double(), dim=1), gamma=0.3
            )
            return {"task": mcr2_loss(z, shares)}
        keys = sample_keys(0, self.global_step, batch["index"])
        other = normalize(head(body(self.view(batch, keys)["input"])).double(), dim=1)
        return {
            "task": -coding_rate(torch.cat([z, other])),
            "agreement": 3.0 * (1.0 - torch.nn.functional.cosine_similarity(z, other).mean()),
        }


class Save(Callback):
    """Saves behind each step, as `ModelCheckpoint` does: before the hooks of the method."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(method, tmp_path, *, ckpt_path=None, **arguments):
    settings = {"max_epochs": 4, "limit_val_batches": 0, **arguments}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(method, Digits(num_train=32, batch_size=16, seed=0), ckpt_path=ckpt_path)
    return trainer


def test_terms_of_both_phases(tmp_path):
    method = Noted(pretrain=0.5, agreement=3.0, gamma=0.3)
    fit(method, tmp_path)
    assert [epoch for epoch, _, _ in method.seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    for _, terms, expected in method.seen:
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            assert terms[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


def test_the_second_head_starts_as_the_first_when_it_begins_to_learn(tmp_path):
    method = make(pretrain=1.0)
    fit(method, tmp_path, max_epochs=2)
    assert torch.equal(method.attached["membership"].weight, method.network.head.weight)
    method = make(pretrain=0.5)
    fit(method, tmp_path, max_epochs=2)
    assert not torch.equal(method.attached["membership"].weight, method.network.head.weight)


def test_goes_on_from_a_checkpoint_of_the_last_batch_of_pretraining(tmp_path):
    whole, cut = make(pretrain=0.5), make(pretrain=0.5)
    fit(whole, tmp_path, callbacks=[ExactResume(), Save(tmp_path)])
    trainer = fit(cut, tmp_path, callbacks=[ExactResume()], ckpt_path=tmp_path / "4.ckpt")
    assert trainer.global_step == 8
    assert all(torch.equal(a, b) for a, b in zip(cut.state_dict().values(), whole.state_dict().values(), strict=True))


def test_labels_are_never_read(tmp_path):
    weights = []
    for shift in (0, 1):

        class Shifted(Digits):
            def on_after_batch_transfer(self, batch, dataloader_idx, shift=shift):
                return batch | {"target": (batch["target"] + shift) % 10}

        method = make()
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=2, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(method, Shifted(num_train=32, batch_size=16, seed=0))
        weights.append(method.network.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_bad_input(tmp_path):
    for arguments, message in (
        ({"pretrain": 0.0}, r"pretrain must lie in \(0, 1\], got 0.0"),
        ({"gamma": 0.0}, "gamma must be positive, got 0.0"),
        ({"eps": -1.0}, "eps must be positive, got -1.0"),
        ({"agreement": -1.0}, "agreement must be at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
    with pytest.raises(ValueError, match="num_clusters must be at least 2, got 1"):
        ManifoldLinearizing(ConvNet(1, 10, width=4), 1, GaussianNoise(0.1))
    with pytest.raises(MisconfigurationException, match="shares out the epochs: set trainer.max_epochs"):
        fit(make(), tmp_path, max_epochs=-1, max_steps=2)
