from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats
from torch import nn

from leyden.callbacks import Mixup, mix_batch
from leyden.core import MethodCallback
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP

CYCLE = torch.tensor([2, 0, 1])
BATCH = {
    "input": torch.tensor([[1.0, 0.0], [3.0, -4.0], [0.0, 8.0]]),
    "target": torch.tensor([1, 0, 1]),
    "index": torch.tensor([7, 5, 6]),
}


def mix(batch=BATCH, permutation=CYCLE, input_lam=0.75, target_lam=0.75, num_classes=2):
    return mix_batch(batch, permutation, input_lam, target_lam, num_classes=num_classes)


# ---- mix_batch


def test_numbers_by_hand():
    before = {key: value.clone() for key, value in BATCH.items()}
    mixed = mix(target_lam=0.625)
    assert mixed["input"].tolist() == [[0.75, 2.0], [2.5, -3.0], [0.75, 5.0]]
    assert mixed["target"].tolist() == [[0.0, 1.0], [0.625, 0.375], [0.375, 0.625]]
    assert mixed["mix_target"].tolist() == [[1, 1], [0, 1], [1, 0]]
    assert mixed["mix_lam"].shape == ()
    assert mixed["mix_lam"].item() == 0.625
    assert mixed["index"] is BATCH["index"]
    assert BATCH.keys() == before.keys()
    assert all(torch.equal(BATCH[key], value) for key, value in before.items())


def test_soft_targets_by_hand():
    soft = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    mixed = mix({**BATCH, "target": soft}, num_classes=None)
    assert mixed["target"].tolist() == [[0.4375, 0.1875, 0.375], [0.125, 0.8125, 0.0625], [0.1875, 0.25, 0.5625]]
    assert mixed["mix_target"].tolist() == [[0, 2], [1, 0], [2, 1]]


@pytest.mark.parametrize(("permutation", "lam"), [(CYCLE, 1.0), (torch.arange(3), 0.3)])
def test_identities(permutation, lam):
    mixed = mix(permutation=permutation, input_lam=lam, target_lam=lam)
    assert torch.equal(mixed["input"], BATCH["input"])
    assert mixed["target"].tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def test_the_other_way_round():
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input": torch.randn(6, 4, dtype=torch.float64, generator=generator),
        "target": torch.randint(5, (6,), generator=generator),
    }
    permutation = torch.randperm(6, generator=generator)
    one = mix(batch, permutation, 0.3, 0.6, 5)
    other = mix(batch, permutation.argsort(), 0.7, 0.4, 5)
    for key in ("input", "target"):
        torch.testing.assert_close(one[key], other[key][permutation], rtol=1e-12, atol=0)
    torch.testing.assert_close(one["target"].sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(one["mix_target"], other["mix_target"][permutation].flip(1))


def test_a_mixture_with_an_unlabeled_sample_is_unlabeled():
    batch = {**BATCH, "target": torch.tensor([1, -1, 0]), "labeled": torch.tensor([True, False, True])}
    mixed = mix(batch)
    assert mixed["labeled"].tolist() == [True, False, False]
    assert mixed["target"][0].tolist() == [0.25, 0.75]
    assert mixed["mix_target"].tolist() == [[1, 0], [-1, 1], [0, -1]]


@pytest.mark.parametrize(
    ("dtype", "of_target"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_dtypes(dtype, of_target):
    mixed = mix({**BATCH, "input": BATCH["input"].to(dtype)}, input_lam=1 / 3, target_lam=1 / 3)
    assert mixed["input"].dtype == dtype
    assert mixed["target"].dtype == mixed["mix_lam"].dtype == of_target


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": torch.zeros(3, 2, dtype=torch.int64)}, "input must be a floating-point tensor .*got torch.int64"),
        ({"input": {"a": torch.zeros(3)}}, "input must be a floating-point tensor to be mixed, got dict"),
        ({"target": torch.zeros(3)}, r"target must be int64 \[N\] or .*, got torch.float32 \(3,\)"),
        ({"target": torch.zeros(3, 4, dtype=torch.int64)}, r"target must be .*, got torch.int64 \(3, 4\)"),
    ],
)
def test_what_cannot_be_mixed(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        mix({**BATCH, **changed})
    assert "\n" not in str(caught.value)


def test_class_numbers_need_their_number():
    with pytest.raises(ValueError, match="num_classes is needed to mix class numbers"):
        mix(num_classes=None)


# ---- Mixup


def method_at(step=0, epoch=0, seed=3):
    data = SimpleNamespace(seed=seed, num_classes=10)
    return SimpleNamespace(datamodule=data, global_step=step, current_epoch=epoch)


def batch_of(num_samples):
    """Samples that are told apart by input and target."""
    numbers = torch.arange(num_samples)
    return {"input": (2.0**numbers).double().unsqueeze(1), "target": numbers, "index": numbers + 20}


def named(mixup, name="Mixup"):
    mixup._state_key = name
    return mixup


def shares(mixup, steps):
    """Shares of inputs and targets in each step."""
    batches = [mixup.transform_batch(method_at(step), batch_of(2)) for step in range(steps)]
    lam = np.array([2.0 - batch["input"][0].item() for batch in batches])  # lam * 1 + (1 - lam) * 2
    return lam, np.array([batch["target"][0, 0].item() for batch in batches])


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha):
    lam, mu = shares(named(Mixup(alpha)), 500)
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    np.testing.assert_allclose(mu, lam, rtol=0, atol=1e-12)


def test_targets_with_shares_of_their_own():
    lam, mu = shares(named(Mixup(1.0, target_lam=0.3)), 50)
    assert set(mu) == {0.3, 0.7}
    assert ((mu > 0.5) == (lam >= 0.5)).all()
    lam, mu = shares(named(Mixup(1.0, target_lam=(2.0, 2.0))), 500)
    assert ((mu > 0.5) == (lam >= 0.5)).all()
    assert stats.kstest(np.abs(mu - 0.5), lambda x: 2 * stats.beta(2, 2).cdf(x + 0.5) - 1).pvalue > 0.01
    assert abs(np.corrcoef(np.abs(lam - 0.5), np.abs(mu - 0.5))[0, 1]) < 0.1


def test_some_steps_are_left_alone():
    mixup = named(Mixup(prob=0.3))
    mixed = ["mix_lam" in mixup.transform_batch(method_at(step), batch_of(4)) for step in range(500)]
    assert stats.binomtest(sum(mixed), 500, 0.3).pvalue > 0.01


def test_a_share_depends_on_seed_step_and_place_among_several():
    def share(name="Mixup", **where):
        return named(Mixup(), name).transform_batch(method_at(**where), batch_of(2))["mix_lam"].item()

    assert share(step=5) == share(step=5, epoch=3)
    assert len({share(step=5), share(step=6), share(step=5, seed=4), share("Mixup_2", step=5)}) == 4


def test_parts_of_a_batch_are_mixed_as_the_whole():
    batch = batch_of(8)
    whole = named(Mixup()).transform_batch(method_at(7), batch)
    assert whole["mix_target"].tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 5], [5, 4], [6, 7], [7, 6]]
    for num_parts in (2, 4):
        parts = [
            named(Mixup()).transform_batch(method_at(7), dict(zip(batch, rows, strict=True)))
            for rows in zip(*(value.chunk(num_parts) for value in batch.values()), strict=True)
        ]
        for key in ("input", "target", "mix_target"):
            assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])


def test_the_last_of_an_odd_number_stays():
    mixed = named(Mixup()).transform_batch(method_at(), batch_of(3))
    assert mixed["mix_target"].tolist() == [[0, 1], [1, 0], [2, 2]]
    assert mixed["input"][2].item() == 4.0


def test_a_mixed_batch_is_left_alone():
    mixed = named(Mixup()).transform_batch(method_at(), batch_of(4))
    assert named(Mixup(), "Mixup_2").transform_batch(method_at(), mixed) is mixed


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive, got 0"),
        ({"target_lam": 1.5}, r"target_lam must lie in \[0, 1\], got 1.5"),
        ({"target_lam": (1.0, 0.0)}, r"target_lam must be two positive numbers .*, got \(1.0, 0.0\)"),
        ({"stop_epoch": 0}, "stop_epoch must be at least 1, got 0"),
        ({"prob": 0.0}, r"prob must lie in \(0, 1\], got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Mixup(**kwargs)


def test_missing_keys():
    with pytest.raises(ValueError, match=r"Mixup needs the batch keys \['target'\]"):
        named(Mixup()).transform_batch(method_at(), {"input": torch.zeros(2, 1)})


# ---- in a fit


class Recorder(MethodCallback):
    """Notes batch, logits and loss of each step."""

    def __init__(self):
        self.steps = []

    def loss_terms(self, method, batch, outputs, terms):
        self.steps.append((method.current_epoch, batch, outputs.logits.detach().double(), terms["task"].item()))
        return terms


def fit(*callbacks, loss=None, accumulate=1, data=None):
    torch.manual_seed(0)
    method = Classification(MLP(64, 10, (16,)), loss=loss, optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        limit_val_batches=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=data or Digits(batch_size=16, num_train=48, seed=1))
    return method


def test_every_loss_for_soft_targets_gets_them():
    weight = torch.linspace(0.5, 1.5, 10)
    recorder = Recorder()
    fit(Mixup(), recorder, loss=nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2))
    assert len(recorder.steps) == 2 * 3
    for _, batch, logits, loss in recorder.steps:
        lam, (a, b) = batch["mix_lam"].double(), batch["mix_target"].unbind(1)
        hard = nn.functional.one_hot(torch.stack([a, b]), 10).double()  # [2, N, C]
        target = 0.8 * (lam * hard[0] + (1 - lam) * hard[1]) + 0.02
        expected = -(weight * target * logits.log_softmax(1)).sum(1).mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_accumulated_micro_batches_make_the_same_step():
    whole, parts = fit(Mixup()), fit(Mixup(), accumulate=2)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_stops_early():
    recorder = Recorder()
    fit(Mixup(stop_epoch=1), recorder)
    assert [(epoch, "mix_lam" in batch, batch["target"].ndim) for epoch, batch, _, _ in recorder.steps] == [
        *[(0, True, 2)] * 3,
        *[(1, False, 1)] * 3,
    ]
