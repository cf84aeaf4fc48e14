"""Distillation by matching trajectories: what is matched, what is learned, and what is refused."""

import pytest
import torch
from torch import nn

from leyden.curation import DATM, curation, datm
from leyden.data import DataModule, TensorDictDataset
from leyden.models import MLP


class Points(DataModule):
    """Three clear samples of each of two classes, and one of the second that looks like the first."""

    num_classes = 2
    target = torch.tensor([0, 1, 0, 1, 0, 1, 1])

    def datasets(self):
        x = torch.tensor([[1.0, 0], [-1, 0], [2, 0], [-2, 0], [3, 0], [-3, 0], [1, 1]])
        return {"train": TensorDictDataset({"input": x, "target": self.target})}


def linear():
    return MLP(2, 2, ())


def write_expert(path, weights):
    """A trajectory of a linear network whose first logit rises with the first number, by these factors."""
    parameters = {}
    for epoch, weight in enumerate(weights):
        head = torch.tensor([[weight, 0.0], [-weight, 0.0]])
        parameters[epoch] = {"head.weight": head, "head.bias": torch.zeros(2)}
    torch.save({"callbacks": {"ExpertTrajectory": {"parameters": parameters}}}, path)
    return str(path)


@pytest.fixture
def expert(tmp_path):
    return write_expert(tmp_path / "expert.ckpt", [0.0, 0.1, 0.2, 0.3])


def make(experts, **given):
    settings = {"ipc": 2, "iterations": 40, "expert_epochs": 1, "synthetic_steps": 3, "start": 2, "max_start": 3}
    rates = {"lr_images": 0.01, "lr_labels": 0.01, "lr_lr": 1e-4, "student_lr": 0.02, "threshold": 2.0}
    return DATM(given.pop("network", linear()), experts, **{**settings, **rates, **given})


def test_begins_with_images_that_an_expert_names_rightly(expert):
    made = make(expert, lr_images=0.0, lr_labels=0.0, lr_lr=0.0, ipc=3)(Points(seed=0))
    assert sorted(made["input"][:, 0].tolist()) == [-3, -2, -1, 1, 2, 3]
    assert not made["input"][:, 1].any()  # not the one that it takes for the other class
    # logits 0.3 x and -0.3 x of the last epoch
    torch.testing.assert_close(
        made["target"], torch.stack([made["input"][:, 0], -made["input"][:, 0]], 1).mul(0.3).softmax(1)
    )
    assert made["student_lr"].item() == pytest.approx(0.02)
    # of a class with too few of them the others are taken, too
    assert made["target"].argmax(1).tolist() == [0, 0, 0, 1, 1, 1]
    assert len(make(expert, ipc=3)(Points(seed=1))["input"]) == 6


def test_the_student_comes_nearer(expert, monkeypatch):
    losses = []
    match = datm.trajectory_matching_loss
    monkeypatch.setattr(datm, "trajectory_matching_loss", lambda *p: losses.append(match(*p)) or losses[-1])
    made = make(expert, lr_images=1.0, iterations=60)(Points(seed=0))
    assert sum(losses[-9:]) < 0.1 * sum(losses[:9])
    assert made["input"].shape == (4, 2)
    torch.testing.assert_close(made["target"].sum(1), torch.ones(4))


def test_experts_and_starts(tmp_path):
    """Each expert once a round; starts from ``min_start`` below a bound that grows; each image once before again."""
    experts = [{"a": torch.arange(30.0) + 100 * number} for number in range(3)]
    made = make(
        "x", batch_size=2, min_start=2, start=4, max_start=9, expansion_end=30, expert_epochs=2, synthetic_steps=5
    )
    drawn = [made._task(step, experts, 6, seed=0) for step in range(90)]
    starts = [int(start["a"]) for start, _, _ in drawn]
    assert [int(goal["a"]) - start for start, (_, goal, _) in zip(starts, drawn, strict=True)] == [2] * 90
    rounds = [[start // 100 for start in starts[i : i + 3]] for i in range(0, 90, 3)]
    assert all(sorted(order) == [0, 1, 2] for order in rounds)
    assert len({tuple(order) for order in rounds}) == 6
    epochs = [start % 100 for start in starts]
    assert {*epochs[:6]} == {2, 3}
    assert {*epochs[30:]} == {2, 3, 4, 5, 6, 7, 8}
    for _, _, batches in drawn:
        assert [len(rows) for rows in batches] == [2] * 5
        assert sorted(torch.cat(batches[:3]).tolist()) == [0, 1, 2, 3, 4, 5]


def test_steps_above_the_threshold_change_nothing(expert):
    with pytest.raises(ValueError, match="every step had a loss above threshold=1e-06"):
        make(expert, threshold=1e-6)(Points(seed=0))


def test_the_rate_stays_positive(tmp_path):
    # moves little, so that a student goes too far, and names surely in the end
    expert = write_expert(tmp_path / "slow.ckpt", [0.0, 0.01, 0.02, 3.0])
    made = make(expert, max_start=2, student_lr=0.5, lr_lr=1.0, threshold=1e9, iterations=1)(Points(seed=0))
    assert made["student_lr"].item() == pytest.approx(1e-6)


class KilledError(Exception):
    pass


def test_goes_on_after_a_kill(expert, tmp_path, monkeypatch):
    monkeypatch.setattr(curation, "SAVE_EVERY", 4)
    whole = make(expert)(Points(seed=0))
    path = tmp_path / "progress"
    steps, unroll = [], datm.unroll_sgd

    def unroll_until(*given):
        if len(steps) in (6, 19, 31):
            steps.append("killed")
            raise KilledError
        steps.append("step")
        return unroll(*given)

    monkeypatch.setattr(datm, "unroll_sgd", unroll_until)
    for _ in range(3):
        killed = make(expert)
        killed.keep_progress(path, "settings")
        with pytest.raises(KilledError):
            killed(Points(seed=0))
    last = make(expert)
    last.keep_progress(path, "settings")
    made = last(Points(seed=0))
    assert 40 < steps.count("step") < 50
    assert all(torch.equal(made[name], tensor) for name, tensor in whole.items())
    # of other settings nothing is taken
    other = make(expert)
    other.keep_progress(path, "others")
    before = len(steps)
    other(Points(seed=0))
    assert len(steps) - before == 40


WRONG = {
    "ipc must be at least 1, got 0": {"ipc": 0},
    "batch_size must be at least 1, got 0": {"batch_size": 0},
    "lr_images must be at least 0, got -1": {"lr_images": -1},
    "lr_labels must be at least 0, got nan": {"lr_labels": float("nan")},
    "student_lr and threshold must be positive, got 0 and 2": {"student_lr": 0},
    "student_lr and threshold must be positive, got 0.02 and nan": {"threshold": float("nan")},
    "min_start < start <= max_start must hold, got 2, 2 and 3": {"min_start": 2},
    "experts must be at least one file": {"experts": []},
    "network must have no BatchNorm": {"network": nn.Sequential(nn.BatchNorm1d(2))},
}


@pytest.mark.parametrize(("message", "given"), WRONG.items())
def test_wrong_arguments(message, given):
    with pytest.raises(ValueError, match=message):
        make(**{"experts": "x", **given})


def test_wrong_files_and_data(expert, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="need experts of 4 epochs, but .*expert.ckpt has 3"):
        make(expert, max_start=4)(Points(seed=0))
    with pytest.raises(ValueError, match="is the trajectory of another network than MLP"):
        make(expert, network=MLP(2, 2, (3,)))(Points(seed=0))
    with pytest.raises(ValueError, match="ipc=4 is more than the smallest class has, 3 samples"):
        make(expert, ipc=4)(Points(seed=0))
    monkeypatch.setattr(Points, "target", torch.rand(7, 2))
    with pytest.raises(ValueError, match=r"DATM needs class numbers \[S\] as targets, got torch.float32 \(7, 2\)"):
        make(expert)(Points(seed=0))
