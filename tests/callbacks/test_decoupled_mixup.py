from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.callbacks import DecoupledMixup, Mixup
from leyden.core import MethodCallback, Outputs
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP


class Recorder(MethodCallback):
    """Notes batch, logits and terms of each step."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        values = {name: term.item() for name, term in terms.items()}
        self.steps.append((batch, outputs.logits.detach().double(), values))
        return terms


def fit(*callbacks):
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (16,)), optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        limit_val_batches=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=Digits(batch_size=8, num_train=48, seed=1))
    return method


def test_terms_of_a_fit():
    recorder = Recorder()
    fit(Mixup(stop_epoch=1), DecoupledMixup(eta=0.5), recorder)
    assert len(recorder.steps) == 2 * 6
    sides = set()
    for batch, logits, terms in recorder.steps[:6]:
        lam = batch["mix_lam"].item()
        sides.add(lam >= 0.5)
        total = 0.0
        for row, (a, b) in zip(logits, batch["mix_target"].tolist(), strict=True):
            if lam < 0.5:
                a, b = b, a
            if a != b:
                others = [c for c in range(10) if c != b]
                total -= 0.5 * max(lam, 1 - lam) ** 0.5 * row[others].log_softmax(0)[others.index(a)].item()
        assert terms["decoupled_mixup"] == pytest.approx(total / 8, rel=1e-5)
        assert terms["task"] == pytest.approx(
            functional.cross_entropy(logits, batch["target"].double()).item(), rel=1e-5
        )
    assert sides == {True, False}
    assert all(set(terms) == {"task"} for _, _, terms in recorder.steps[6:])


def test_weight_zero_is_mixup_bit_for_bit():
    plain, weightless, heavy = (fit(Mixup(), *more) for more in ([], [DecoupledMixup(0.0)], [DecoupledMixup(1.0)]))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weightless.state_dict()[name])
        assert not torch.equal(tensor, heavy.state_dict()[name])


def test_unlabeled_samples_are_left_out():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mixed = {"mix_target": torch.tensor([[0, 1], [2, -1], [1, 2], [-1, 0]]), "mix_lam": torch.tensor(0.7)}

    def term(rows, **more):
        batch = {"mix_target": mixed["mix_target"][rows], "mix_lam": mixed["mix_lam"], **more}
        return DecoupledMixup().loss_terms(None, batch, Outputs(logits=logits[rows]), {})

    labeled = torch.tensor([True, False, True, False])
    assert torch.equal(term([0, 1, 2, 3], labeled=labeled)["decoupled_mixup"], term([0, 2])["decoupled_mixup"])
    assert term([1, 3], labeled=labeled[[1, 3]]) == {}


def test_nothing_that_mixes():
    with pytest.raises(
        MisconfigurationException, match="no callback mixes them: add one, such as leyden.callbacks.Mixup"
    ):
        fit(DecoupledMixup())


def test_another_callback_must_leave_both_keys():
    with pytest.raises(ValueError, match=r"DecoupledMixup needs the batch keys \['mix_target'\]"):
        DecoupledMixup().loss_terms(None, {"mix_lam": torch.tensor(0.5)}, None, {})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eta": -0.1}, "eta and power must be at least 0, got -0.1 and 0.5"),
        ({"power": -1.0}, "eta and power must be at least 0, got 0.1 and -1.0"),
        ({"threshold": -0.5}, r"threshold must lie in \[0, 1\], got -0.5"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DecoupledMixup(**kwargs)
