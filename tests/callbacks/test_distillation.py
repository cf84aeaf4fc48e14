"""Distillation against Hinton's formula worked by hand, its cache, its taps, and what a run without it gives."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import Distillation, LastCheckpoint, Mixup
from leyden.core import MethodCallback
from leyden.data import Digits, GaussianNoise
from leyden.losses import KD, AttentionTransfer, SimilarityPreserving
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.nn import Projector


class Recorder(MethodCallback):
    """Notes the terms of each step."""

    def __init__(self):
        self.terms = []

    def loss_terms(self, method, batch, outputs, terms):
        self.terms.append({name: term.detach().double() for name, term in terms.items()})
        return terms


def network(width=4, seed=0):
    torch.manual_seed(seed)
    return ConvNet(1, 10, width=width)


def constant(logits):
    mlp = MLP(64, len(logits), ())
    nn.init.zeros_(mlp.head.weight)
    mlp.head.bias.data = torch.tensor(logits)
    return mlp


@pytest.fixture
def fit(make_trainer):
    def fit(*callbacks, student=None, ckpt_path=None, data=None, **kwargs):
        student = deepcopy(student) if student is not None else network()
        method = Classification(student, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        recorder = Recorder()
        trainer = make_trainer(*callbacks, recorder, limit_val_batches=0, **kwargs)
        data = data or Digits(num_train=40, batch_size=8, seed=0)
        trainer.fit(method, data, ckpt_path=ckpt_path)
        return method, recorder.terms, trainer

    return fit


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_terms_by_hand(fit):
    # softened with T = 2: log 81 / 2 = log 9, so that the teacher has 1/2 for one class and 1/18 for each other
    teacher = constant([math.log(81.0), *[0.0] * 9])
    callback = Distillation(teacher, KD(temperature=2.0), weight=0.75, base_weight=0.25)
    _, terms, _ = fit(callback, student=constant([0.0] * 10), max_steps=1)
    assert terms[0]["task"].item() == pytest.approx(0.25 * math.log(10.0))
    assert terms[0]["kd"].item() == pytest.approx(0.75 * 4.0 * kl([1 / 2] + [1 / 18] * 9, [1 / 10] * 10), rel=1e-5)


def test_several_teachers_are_averaged(fit):
    teachers = [constant([math.log(9.0), *[0.0] * 9]), constant([0.0] * 10)]
    _, terms, _ = fit(Distillation(teachers, KD(temperature=1.0)), student=constant([0.0] * 10), max_steps=1)
    assert terms[0]["kd"].item() == pytest.approx(0.5 * kl([1 / 2] + [1 / 18] * 9, [1 / 10] * 10), rel=1e-5)


def test_without_weight_the_run_is_that_of_the_baseline(fit):
    alone, _, _ = fit()
    beside, _, _ = fit(Distillation(network(8, seed=1), weight=0.0))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, beside.state_dict()[name]), name


def test_teachers_stay_as_they_are(fit):
    teacher = network(8, seed=1)
    before = deepcopy(teacher.state_dict())
    method, _, _ = fit(Distillation(teacher))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any("teacher" in name for name in method.state_dict())


@pytest.mark.parametrize("shared", [False, True])
def test_two_objectives(fit, shared):
    """Logits and maps, in either order, of a teacher that is run once or twice: the same losses."""
    teacher = network(8, seed=1)
    maps = Distillation(
        None if shared else deepcopy(teacher), AttentionTransfer(), weight=10.0, taps={"body.2": "body.2"}
    )
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    teacher.head.register_forward_hook(lambda *_: calls.append(1))
    _, terms, _ = fit(Distillation(teacher), maps)
    assert sorted(terms[0]) == ["kd", "kd_2", "task"]
    assert len(calls) == 15 + 1 + shared  # 3 epochs of 5 batches, and the dry run of each callback that asks it
    if not shared:
        _, swapped, _ = fit(maps, Distillation(teacher))
        assert [term["task"] for term in swapped] == [term["task"] for term in terms]
        assert [(term["kd_2"], term["kd"]) for term in swapped] == [(term["kd"], term["kd_2"]) for term in terms]


def test_a_tap_is_what_the_layer_returned(fit):
    student, teacher = network(), network(8, seed=1)
    callback = Distillation(teacher, SimilarityPreserving(), taps={"body.2": "body.4", "features": "features"})
    _, terms, _ = fit(callback, student=student, max_steps=1)
    data = Digits(num_train=40, batch_size=8, seed=0)
    data.setup("fit")
    x = next(iter(data.train_dataloader()))["input"]
    objective, teacher_maps = SimilarityPreserving(), teacher.body(x)
    student_maps = student.body[:3](x)
    wanted = objective(student_maps, teacher_maps) + objective(student.pool(student.body(x)), teacher_maps.mean((2, 3)))
    assert terms[0]["kd"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_projectors_are_trained_and_resumed(fit, tmp_path):
    def callbacks():
        taps = {"body.2": "body.2"}
        teacher = network(8, seed=1)
        distillation = Distillation(teacher, nn.MSELoss(), taps=taps, projectors=Projector, base_weight=0.0)
        return distillation, LastCheckpoint(every_n_steps=5)

    whole, _, _ = fit(*callbacks(), max_epochs=2)
    (projector,) = whole.attached["kd_projectors"]
    assert projector.map.weight.shape == (16, 8, 1, 1)
    fit(*callbacks(), max_epochs=1)
    resumed, _, _ = fit(*callbacks(), max_epochs=2, ckpt_path=next(tmp_path.rglob("last.ckpt")))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class Centred(nn.Module):
    """An objective with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("center", torch.zeros(10))

    def forward(self, student, teacher):
        if self.training:
            self.center = 0.9 * self.center + 0.1 * teacher.mean(0)
        return (self.scale * student - teacher + self.center).square().mean()


def test_an_objective_with_a_state_is_trained_and_resumed(fit, tmp_path):
    def callbacks():
        return Distillation(network(8, seed=1), Centred()), LastCheckpoint(every_n_steps=5)

    whole, _, _ = fit(*callbacks(), max_epochs=2)
    state = whole.attached["kd_objective"].state_dict()
    assert state["scale"] != 1.0
    assert state["center"].count_nonzero() == 10
    fit(*callbacks(), max_epochs=1)
    resumed, _, _ = fit(*callbacks(), max_epochs=2, ckpt_path=next(tmp_path.rglob("last.ckpt")))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_cached_and_live_losses_are_equal(fit, tmp_path):
    teacher = network(8, seed=1)
    calls = []
    teacher.head.register_forward_hook(lambda *_: calls.append(1))
    _, live, _ = fit(Distillation(teacher))
    calls.clear()
    _, cached, _ = fit(Distillation(teacher, cache=str(tmp_path / "cache")))
    assert [{n: v.item() for n, v in terms.items()} for terms in cached] == [
        {n: v.item() for n, v in terms.items()} for terms in live
    ]
    assert len(calls) == 5 + 2  # the first of three epochs, the dry run, and that of the cache
    (file,) = (tmp_path / "cache").iterdir()
    assert np.load(file)["written"].sum() == 40
    calls.clear()
    fit(Distillation(teacher, cache=str(tmp_path / "cache")), data=Digits(num_train=40, batch_size=20, seed=3))
    assert len(calls) == 2
    fit(Distillation(network(8, seed=2), cache=str(tmp_path / "cache")), max_steps=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    calls.clear()
    fit(Distillation(teacher, cache=str(tmp_path / "cache")), precision="bf16-mixed", max_epochs=1)
    assert len(calls) == 5 + 2  # what other precisions wrote is not taken


def test_another_teacher_cannot_go_on(fit, tmp_path):
    fit(Distillation(network(8, seed=1)), LastCheckpoint(), max_epochs=1)
    with pytest.raises(ValueError, match="teacher has other weights"):
        fit(Distillation(network(8, seed=2)), LastCheckpoint(), ckpt_path=next(tmp_path.rglob("last.ckpt")))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="teacher must be at least one network"):
        Distillation([])
    with pytest.raises(ValueError, match="base_weight must be at least 0, got -1"):
        Distillation(network(), base_weight=-1.0)
    with pytest.raises(ValueError, match="taps must name at least one pair"):
        Distillation(network(), taps={})
    with pytest.raises(ValueError, match="cache belongs to the Distillation that has the teachers"):
        Distillation(cache="x")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [Distillation()], MisconfigurationException, "uses that of the first Distillation"),
        (lambda: [Distillation(constant([0.0] * 3))], ValueError, r"same shape \[N, ..., C\], got \(2, 10\) and"),
        (lambda: [Distillation(network(), taps={"body.7": "logits"})], ValueError, "no module 'network.body.7'"),
        (lambda: [Distillation(network(), taps={"logits": "bdoy"})], ValueError, "no module 'bdoy' in ConvNet; near"),
        (
            lambda: [Distillation(network(), taps={"features": "features"}, cache="x")],
            MisconfigurationException,
            r"cache holds logits only, but taps ask the teacher for \['features'\]",
        ),
        (
            lambda: [Distillation(network(), cache="x"), Distillation(None, KD(), taps={"body.2": "body.2"})],
            MisconfigurationException,
            r"cache holds logits only, but taps ask the teacher for \['body.2'\]",
        ),
        (lambda: [Distillation(network(), cache="x"), Mixup()], MisconfigurationException, "are changed by Mixup"),
    ],
)
def test_wrong_set_ups_are_found_before_training(fit, make, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        fit(*make())
    assert not (tmp_path / "x").exists()


def test_augmented_samples_are_not_cached(fit):
    data = Digits(num_train=40, batch_size=8, augment=GaussianNoise(0.1))
    with pytest.raises(MisconfigurationException, match="are changed by augment of the data"):
        fit(Distillation(network(), cache="x"), data=data)
