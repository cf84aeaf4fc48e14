from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

from leyden.callbacks import AdaptiveBatchSize, ExactResume, inner_product_test, norm_test, plan_batch
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import MLP, ConvNet
from leyden.optim import WarmupCosine


class Recorder(Callback):
    """Notes each optimizer step: its samples, the sizes of its micro-batches, the weights before it, the rate."""

    def __init__(self):
        self.steps, self.pieces = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.pieces:
            self.weights = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
            self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.pieces.append(batch["index"].tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.steps):
            index = [i for piece in self.pieces for i in piece]
            sizes = [len(piece) for piece in self.pieces]
            self.steps.append((trainer.current_epoch, index, sizes, self.weights, self.lr))
            self.pieces = []

    @property
    def sizes(self):
        return [len(index) for _, index, *_ in self.steps]

    @property
    def rates(self):
        return [lr for *_, lr in self.steps]


def make_method(scheduler=None, dropout=0.5):
    torch.manual_seed(0)
    return Classification(
        MLP(64, 10, (6,), dropout=dropout), optimizer=partial(torch.optim.SGD, lr=0.5), scheduler=scheduler
    )


def data(**kwargs):
    return Digits(**{"num_train": 96, "batch_size": 8, "seed": 5} | kwargs)


def fit(make_trainer, callback, method=None, datamodule=None, **kwargs):
    recorder = Recorder()
    method = method or make_method()
    trainer = make_trainer(recorder, callback, **{"max_epochs": 2, "limit_val_batches": 0} | kwargs)
    trainer.fit(method, datamodule=datamodule or data())
    return recorder, trainer, method


def per_sample_gradients(network, samples):
    rows = []
    for x, y in zip(samples["input"], samples["target"], strict=True):
        loss = functional.cross_entropy(network(x.unsqueeze(0)), y.unsqueeze(0))
        rows.append(torch.autograd.grad(loss, list(network.parameters())))
    return [torch.stack(grads) for grads in zip(*rows, strict=True)]


TESTS = {
    "norm": partial(norm_test, eta=0.7),
    "inner_product": partial(inner_product_test, theta=0.3),
    "augmented": partial(inner_product_test, theta=0.3, nu=1.0),
}


@pytest.mark.parametrize("arguments", [{"accumulate_grad_batches": 1}, {"accumulate_grad_batches": 2}], ids=str)
@pytest.mark.parametrize("test", TESTS)
def test_the_size_follows_the_test_of_each_step(make_trainer, monkeypatch, test, arguments):
    monkeypatch.setattr("leyden.callbacks.adaptive_batch_size._NUMBERS", 3 * 460)  # a few samples at once
    recorder, trainer, _ = fit(make_trainer, AdaptiveBatchSize(test, eta=0.7, theta=0.3, nu=1.0), **arguments)
    samples, network = trainer.datamodule.dataset("train"), MLP(64, 10, (6,))
    size, grew = 8, 0
    for _, index, _, weights, _ in recorder.steps:
        assert len(index) == size
        network.load_state_dict(weights)
        found = TESTS[test](per_sample_gradients(network, samples.__getitems__(index))).batch_size
        grew += found > size
        size = min(-(-max(size, found) // 8) * 8, 96)
    assert grew > 1
    # every sample came once in the first epoch, but for the last, smaller batch
    first = [i for epoch, index, *_ in recorder.steps for i in index if epoch == 0]
    assert len({*first}) == len(first)


def test_micro_batches_grow_before_accumulation(make_trainer):
    whole, _, expected = fit(
        make_trainer, AdaptiveBatchSize(eta=0.3, max_batch_size=48, interval=2), make_method(dropout=0.0)
    )
    parts, trainer, got = fit(
        make_trainer,
        AdaptiveBatchSize(eta=0.3, max_batch_size=48, max_micro_batch_size=16, interval=2),
        make_method(dropout=0.0),
    )
    assert whole.sizes == parts.sizes
    assert max(parts.sizes) == 48
    assert [index for _, index, *_ in whole.steps] == [index for _, index, *_ in parts.steps]
    for _, index, sizes, *_ in parts.steps:
        assert len({*sizes}) == 1
        assert len(sizes) == -(-len(index) // 16)
    for p, q in zip(expected.parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert trainer.accumulate_grad_batches == 1  # as it was


@pytest.mark.parametrize("cuts", [[2], [3, 5], [4, 7, 9], [6, 8]])
@pytest.mark.parametrize("limit", [None, 8])
def test_goes_on_with_size_and_accumulation(run, make_method, assert_same_runs, limit, cuts):
    def callbacks():
        return [AdaptiveBatchSize(eta=0.9, max_micro_batch_size=limit, max_batch_size=24, interval=2, lr_rule="sqrt")]

    arguments = {"callbacks": callbacks, "method": partial(make_method, scheduler=WarmupCosine), "max_epochs": 4}
    whole = run("whole", **arguments)
    sizes = {len(note["index"]) for note in whole.diary.steps.values()}
    assert sizes == ({8} if limit else {8, 16, 24})
    assert whole.trainer.global_step == 10
    assert_same_runs(run("cut", cuts, **arguments), whole)


def play(folder, devices):
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[ExactResume(), recorder, AdaptiveBatchSize(eta=0.7, max_micro_batch_size=16 // devices)],
        default_root_dir=folder,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    method = make_method(dropout=0.0)
    trainer.fit(method, datamodule=data())
    return recorder.sizes, [p.detach() for p in method.parameters()]


def test_two_processes_decide_as_one(run_processes, tmp_path):
    sizes, weights = play(tmp_path, 1)
    assert len({*sizes}) > 2
    for half, same in run_processes(play, 2, tmp_path, 2):
        assert [2 * size for size in half] == sizes
        for p, q in zip(weights, same, strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize(("rule", "power"), [("linear", 1.0), ("sqrt", 0.5)])
def test_the_rate_follows_the_size(make_trainer, rule, power):
    recorder, *_ = fit(make_trainer, AdaptiveBatchSize(eta=0.4, max_batch_size=32, interval=3, lr_rule=rule))
    assert recorder.rates == pytest.approx([0.5 * (size / 8) ** power for size in recorder.sizes])
    assert max(recorder.sizes) == 32


@pytest.mark.parametrize("rule", [None, "linear"])
def test_the_schedule_counts_samples_or_steps(make_trainer, rule):
    arguments = {"eta": 0.4, "max_batch_size": 32, "interval": 3, "lr_rule": rule}
    by_samples, *_ = fit(make_trainer, AdaptiveBatchSize(**arguments), make_method(WarmupCosine))
    by_steps, *_ = fit(make_trainer, AdaptiveBatchSize(**arguments, schedule="steps"), make_method(WarmupCosine))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    scheduler = WarmupCosine(optimizer, total_steps=24)  # 2 epochs of 12 steps of 8 samples
    curve = []
    for _ in range(24):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for recorder, counts_samples in ((by_samples, True), (by_steps, False)):
        place, expected = 0, []
        for size in recorder.sizes:
            expected.append(curve[place] * (size / 8 if rule else 1.0))
            place += size // 8 if counts_samples else 1
        assert recorder.rates == pytest.approx(expected)
    assert max(by_samples.sizes) == 32


@pytest.mark.parametrize("test", TESTS)
def test_a_last_batch_of_one_sample_asks_for_nothing(make_trainer, test):
    callback = AdaptiveBatchSize(test, eta=1e3, theta=1e3, nu=1e3)
    recorder, *_ = fit(make_trainer, callback, datamodule=data(num_train=9, drop_last=False, batch_size=4))
    assert recorder.sizes == [4, 4, 1] * 2


def test_sizes_and_samples_are_logged(run):
    log = run("logged", callbacks=lambda: [AdaptiveBatchSize(eta=0.9, max_batch_size=24)]).log.splitlines()
    header, *rows = [line.split(",") for line in log]
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    steps = [row for row in rows if row["train/batch_size"]]
    sizes = [float(row["train/batch_size"]) for row in steps]
    seen = [float(row["train/samples_seen"]) for row in steps]
    needed = [float(row["train/needed_batch_size"]) for row in steps]
    assert sizes[0] == 8.0
    assert sizes[-1] == 24.0
    assert seen == torch.tensor(sizes).cumsum(0).tolist()
    for now, then, asked in zip(sizes, sizes[1:], needed, strict=False):
        assert then == min(max(now, -(-asked // 8) * 8), 24.0)


def test_batch_norm_and_the_modes_of_layers_stay_as_they_are(make_trainer):
    methods = []
    for callback in (Recorder(), AdaptiveBatchSize()):
        torch.manual_seed(0)
        methods.append(Classification(ConvNet(1, 10, width=4)))
        fit(make_trainer, callback, methods[-1], max_steps=1)
    without, tested = methods
    for (name, p), q in zip(without.state_dict().items(), tested.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    assert [m.training for m in without.modules()] == [m.training for m in tested.modules()]


@pytest.mark.parametrize(
    ("batch_size", "limits", "expected"),
    [
        (100, {}, (100, 1, 100)),
        (100, {"max_micro_batch_size": 50}, (50, 2, 100)),
        (100, {"world_size": 2, "max_micro_batch_size": 25}, (25, 2, 100)),
        (101, {"world_size": 2, "multiple_of": 8}, (52, 1, 104)),
        (101, {"multiple_of": 8, "max_batch_size": 100}, (96, 1, 96)),
        (200, {"multiple_of": 8, "max_micro_batch_size": 32}, (25, 8, 200)),  # 7 parts would be unequal
        (5, {"accumulate": 4}, (2, 4, 8)),
        (10**9, {"max_batch_size": 64, "max_micro_batch_size": 16}, (16, 4, 64)),
    ],
)
def test_plan(batch_size, limits, expected):
    assert plan_batch(batch_size, **limits) == expected


def test_a_plan_is_the_same_on_more_processes_and_stays():
    for size in range(1, 400, 7):
        plans = [plan_batch(size, world_size=w, max_micro_batch_size=12, multiple_of=8) for w in (1, 2, 4, 8)]
        assert len({plan.batch_size for plan in plans}) == 1
        for world_size, plan in zip((1, 2, 4, 8), plans, strict=True):
            assert plan.micro_batch_size * plan.accumulate * world_size == plan.batch_size
            assert 8 // world_size <= plan.micro_batch_size <= 12
            again = plan_batch(plan.batch_size, world_size=world_size, max_micro_batch_size=12, multiple_of=8)
            assert again == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": "t"}, "test must be 'norm', 'inner_product' or 'augmented', got 't'"),
        ({"eta": 0.0}, "eta must be positive, got 0.0"),
        ({"nu": -1.0}, "nu must be positive, got -1.0"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1, got 0"),
        ({"test": "augmented", "coordinatewise": True}, "coordinatewise is a form of the test 'norm'"),
        ({"lr_rule": "cubic"}, "lr_rule must be 'linear', 'sqrt' or None, got 'cubic'"),
        ({"schedule": "epochs"}, "schedule must be 'samples' or 'steps', got 'epochs'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatchSize(**arguments)


def test_bad_plans():
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        plan_batch(8, world_size=0)
    with pytest.raises(ValueError, match="max_micro_batch_size must be at least 1, got 0"):
        plan_batch(8, max_micro_batch_size=0)
    with pytest.raises(ValueError, match="max_batch_size must be at least 16, the least that can be shared, got 10"):
        plan_batch(8, world_size=2, multiple_of=16, max_batch_size=10)


@pytest.mark.parametrize(
    ("arguments", "trainer", "datamodule", "message"),
    [
        ({}, {}, {"batch_size": 1}, "compares the gradients of a batch, but batches of 1 sample have nothing to"),
        ({"max_batch_size": 4}, {}, {}, "max_batch_size=4 is below the batch size that the run begins with: 8"),
        ({"max_micro_batch_size": 4}, {}, {}, "max_micro_batch_size=4 is below the 8 samples"),
        ({"max_micro_batch_size": 8}, {}, {"drop_last": False}, "set data.drop_last to true"),
        ({}, {"accumulate_grad_batches": 2}, {"drop_last": False}, "set data.drop_last to true"),
    ],
)
def test_bad_set_ups(make_trainer, arguments, trainer, datamodule, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(make_trainer, AdaptiveBatchSize(**arguments), datamodule=data(**datamodule), **trainer)


def test_needs_its_data_and_steps_of_the_trainer(make_trainer):
    class ByHand(Classification):
        automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="resizes the batches of a leyden.data.DataModule, got None"):
        make_trainer(AdaptiveBatchSize()).fit(make_method(), [{}], [{}])
    with pytest.raises(MisconfigurationException, match="ByHand makes its optimizer steps itself"):
        make_trainer(AdaptiveBatchSize()).fit(ByHand(MLP(64, 10, (6,))), datamodule=data())
