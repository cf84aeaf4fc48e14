import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.data import Compose, CorruptedDigits, Digits, GaussianNoise, TwoViews
from leyden.methods import RobustMeanTeacher
from leyden.models import ConvNet

SGD = partial(torch.optim.SGD, lr=0.1)


class Seen(Callback):
    """The batches, and networks, teacher and rate in each step."""

    def __init__(self):
        self.batches, self.students, self.teachers, self.rates = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        self.students.append(copy.deepcopy(pl_module.network))
        self.teachers.append(copy.deepcopy(pl_module.frozen["teacher"].module))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def fit(make_trainer):
    def fit(method, *, data=None, epochs=3, **kwargs):
        seen = Seen()
        options = {"precision": "64-true", "limit_train_batches": 2, "limit_val_batches": 0} | kwargs
        trainer = make_trainer(seen, max_epochs=epochs, **options)
        views = TwoViews(Compose([]), second=GaussianNoise(0.2))
        trainer.fit(method, datamodule=data or CorruptedDigits(batch_size=32, num_train=200, seed=0, augment=views))
        return seen, trainer

    return fit


def network(dropout=0.0):
    torch.manual_seed(0)
    return ConvNet(1, 10, width=2, dropout=dropout)


def assert_steps(seen, method, number, loss, lr):
    """The weights after a step of SGD are those of a loss that is a function of the student before."""
    student = seen.students[number]
    after = [*seen.students, method.network][number + 1]
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(loss(student), parameters)
    for p, gradient, q in zip(parameters, gradients, after.parameters(), strict=True):
        torch.testing.assert_close(q, p - lr * gradient, rtol=1e-9, atol=1e-12)


def both_ways(s, t):
    return -(t.softmax(1) * s.log_softmax(1) + s.softmax(1) * t.log_softmax(1)).sum(1) / 2


def prototypes(student):
    student = copy.deepcopy(student).train()
    tensors = CorruptedDigits(num_train=200).dataset("source").tensors
    with torch.no_grad():
        bounds = [200 * part // 7 for part in range(1, 7)]  # parts of at most 32, as the loader cuts
        parts = [student.features(x.double()) for x in tensors["input"].tensor_split(bounds)]
    features = torch.cat(parts)
    return torch.stack([features[tensors["target"] == label].mean(0) for label in range(10)])


def test_source_warm_up_and_stream(fit):
    method = RobustMeanTeacher(
        network(), momentum=0.9, projection_dim=6, contrastive_weight=0.5, source_weight=2.0, warmup_samples=64 + 10,
        temperature=0.2, optimizer=SGD,
    )  # fmt: skip
    seen, trainer = fit(method)
    assert seen.rates == pytest.approx([0.1, 0.1, 0.05, 0.1, 0.1, 0.1])

    for number in (0, 1):  # source
        batch = seen.batches[number]
        assert_steps(
            seen,
            method,
            number,
            lambda net, batch=batch: functional.cross_entropy(net(batch["source_input"]), batch["source_target"]),
            0.1,
        )
    for p, q in zip(seen.teachers[2].parameters(), seen.students[2].parameters(), strict=True):
        assert torch.equal(p, q)  # a copy until the adaptation

    for number, lr in ((2, 0.05), (3, 0.1)):  # warm-up
        x, teacher = seen.batches[number]["source_input"], seen.teachers[number].train()
        assert_steps(seen, method, number, lambda net, x=x, t=teacher: both_ways(net(x), t(x).detach()).mean(), lr)
    for p, q, new in zip(*(net.parameters() for net in (seen.teachers[3], seen.students[4], seen.teachers[4])),
                         strict=True):  # fmt: skip
        torch.testing.assert_close(new, 0.9 * p + 0.1 * q, rtol=1e-12, atol=0.0)

    means = prototypes(seen.students[2])
    torch.testing.assert_close(method.prototypes, means)
    right = 0
    for number in (4, 5):  # stream
        batch, teacher = seen.batches[number], seen.teachers[number].train()
        with torch.no_grad():
            t = teacher(batch["input"])
            s = seen.students[number](batch["input"])
        right += ((s + t).argmax(1) == batch["clean_target"]).sum().item()
    assert method.online.tolist() == [right, 64]
    assert trainer.callback_metrics["stream/accuracy"].item() == pytest.approx(right / 64)


def test_whole_loss_of_the_stream(fit):
    method = RobustMeanTeacher(
        network(), momentum=0.9, projection_dim=6, contrastive_weight=0.5, source_weight=2.0, self_training_weight=3.0,
        temperature=0.2, optimizer=SGD,
    )  # fmt: skip
    projector = copy.deepcopy(method.attached["projector"]).double()
    seen, _ = fit(method, epochs=1)
    batch, teacher = seen.batches[0], seen.teachers[0].train()
    means = prototypes(seen.students[0])

    def loss(net):
        net.train()
        x, x_2 = batch["input"], batch["input_2"]
        f, f_2 = net.features(x), net.features(x_2)
        t = teacher(x).detach()
        entropy = (both_ways(net.head(f), t) + both_ways(net.head(f_2), t)).mean() / 2
        nearest = functional.cosine_similarity(f.detach()[:, None], means, dim=-1).argmax(1)
        rows = functional.normalize(projector(torch.cat([means[nearest], f, f_2])), dim=1)
        scores = (rows @ rows.T / 0.2).exp()
        scores = scores - scores.diag().diag()
        shares = scores / scores.sum(1, keepdim=True)
        ways = [shares[i, (i + 32 * k) % 96].log() for i in range(96) for k in (1, 2)]
        source = functional.cross_entropy(net(batch["source_input"]), batch["source_target"])
        return 3.0 * entropy - 0.5 * torch.stack(ways).mean() + 2.0 * source

    assert_steps(seen, method, 0, loss, 0.1)


def test_statistics_alone_leave_the_weights_as_they_are(fit):
    method = RobustMeanTeacher(
        network(), self_training_weight=0.0, contrastive_weight=0.0, source_weight=0.0, warmup_samples=0
    )
    seen, _ = fit(method)
    for p, q, start in zip(method.network.parameters(), seen.students[4].parameters(), seen.students[0].parameters(),
                           strict=True):  # fmt: skip
        assert torch.equal(p, q), "the optimizer goes on"
        assert not torch.equal(q, start)


def test_momentum_of_one_freezes_the_teacher(fit):
    method = RobustMeanTeacher(network(), momentum=1.0, warmup_samples=0)
    seen, _ = fit(method)
    for p, q in zip(method.frozen["teacher"].module.parameters(), seen.students[4].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=0.0)


def test_no_dropout_on_the_stream_and_modes_come_back(fit):
    method = RobustMeanTeacher(network(dropout=0.9), warmup_samples=0, optimizer=SGD, contrastive_weight=0.0,
                               source_weight=0.0)  # fmt: skip
    seen, _ = fit(method, epochs=1)
    batch, teacher = seen.batches[0], seen.teachers[0].train()
    teacher.dropout.eval()

    def loss(net):
        net.train().dropout.eval()
        t = teacher(batch["input"]).detach()
        return (both_ways(net(batch["input"]), t) + both_ways(net(batch["input_2"]), t)).mean() / 2

    assert_steps(seen, method, 0, loss, 0.1)
    assert all(module.training for module in method.network.modules())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"momentum": 1.1}, "momentum must lie"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"projection_dim": 0}, "projection_dim must be at least 1"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be at least 0"),
        ({"warmup_samples": -1}, "warmup_samples must be at least 0"),
        ({"scheduler": object()}, "scheduler must be null"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        RobustMeanTeacher(network(), **arguments)


def test_needs_a_source_a_second_view_and_an_end(fit):
    with pytest.raises(MisconfigurationException, match="has no 'source' data"):
        fit(RobustMeanTeacher(network()), data=Digits(batch_size=32))
    with pytest.raises(ValueError, match=r"on the stream needs the batch keys \['input_2'\]"):
        fit(RobustMeanTeacher(network()), data=CorruptedDigits(batch_size=32), epochs=1, precision=32)
    with pytest.raises(MisconfigurationException, match="adapts in the last epoch"):
        fit(RobustMeanTeacher(network()), max_steps=4)


def test_half_precision_and_accumulated_micro_batches(fit):
    method = RobustMeanTeacher(network(), momentum=0.9, warmup_samples=32)
    views = TwoViews(Compose([]), second=GaussianNoise(0.2))
    data = CorruptedDigits(batch_size=32, num_train=200, seed=0, augment=views)
    seen, trainer = fit(method, data=data, epochs=2, precision="bf16-mixed", accumulate_grad_batches=2)
    assert [len(batch["input"]) for batch in seen.batches] == [16] * 4
    assert trainer.global_step == 2
    assert method.online[1] == 32
    (*_, source), (*_, warmed) = (net.parameters() for net in (seen.students[2], seen.teachers[2]))
    assert not torch.equal(source, warmed), "the teacher lags behind from the warm-up on"
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in method.parameters())
