from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from leyden.callbacks import EMA
from leyden.core import Network
from leyden.methods import Classification


def copies(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Watch(Callback):
    """Keeps the weights after every optimizer step, and those that an evaluation sees."""

    def __init__(self):
        self.iterates, self.seen, self.sanity, self.tested = [], {}, None, None

    def on_train_start(self, trainer, pl_module):
        self.start, self.iterates = trainer.global_step, [copies(pl_module)]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.start + len(self.iterates):
            self.iterates.append(copies(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking:
            self.sanity = copies(pl_module)
        else:
            self.seen[trainer.global_step] = copies(pl_module)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.tested = copies(pl_module)


class Save(Checkpoint):
    """Saves at the end of every epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(trainer.default_root_dir + "/save.ckpt", weights_only=False)


class Foreign(LightningModule):
    """No Method, and two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def loss(self, batch):
        return nn.functional.cross_entropy(self.second(self.first(batch["input"]).relu()), batch["target"])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Normalized(Network):
    """With the buffers of batch normalisation: two averages and a counter."""

    def __init__(self):
        super().__init__()
        self.body, self.feature_dim, self.head = nn.BatchNorm1d(6), 6, nn.Linear(6, 3)

    def features(self, x):
        return self.body(x)


def recursion(iterates, decay):
    """The average after each step in float64; ``decay(step)`` is None where there is no update."""
    average = {name: value.double() for name, value in iterates[0].items()}
    averages = [average]
    for step, current in enumerate(iterates[1:], start=1):
        d = decay(step)
        if d is not None:
            average = {name: d * average[name] + (1 - d) * current[name].double() for name in average}
        averages.append(average)
    return averages


def assert_close(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name].double(), expected[name], **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name


def power(g, delta=1):
    return lambda step: None if step % delta else (1 - delta / step) ** (g + 1)


# ---- numbers


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "decay"),
    [
        ({"decay": 0.9}, lambda step: 0.9 if step > 1 else 0.0),
        ({"decay": 0.75, "warmup": True}, lambda step: min(0.75, 1 - step ** (-2 / 3))),
        ({"decay": 0.9, "start_step": 5}, lambda step: 0.9 if step > 6 else 0.0),
        ({"decay": 0.99, "warmup": True, "start_step": 5}, lambda step: 1 - max(1, step - 5) ** (-2 / 3)),
        ({"decay": 0.9, "every_n_steps": 4}, lambda step: None if step % 4 else 0.9 * (step > 4)),
        ({"power_std": 0.1}, power(6.9369)),
        ({"power_std": 12**-0.5, "every_n_steps": 3}, power(0.0, delta=3)),
        ({"decay": 0.0}, lambda step: 0.0),
        ({"decay": 1.0}, lambda step: 1.0 if step > 1 else 0.0),
        ({"decay": 0.9, "device": "cpu"}, lambda step: 0.9 if step > 1 else 0.0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_average_is_the_float64_recursion(make_method, make_data, make_trainer, arguments, decay, accumulate):
    watch, method = Watch(), make_method()
    trainer = make_trainer(EMA(**arguments), watch, accumulate_grad_batches=accumulate)
    trainer.fit(method, datamodule=make_data())
    averages = recursion(watch.iterates, decay)
    assert len(averages) == 19
    assert list(watch.seen) == [6, 12, 18]
    for step, seen in watch.seen.items():
        assert_close(seen, averages[step], rtol=1e-4)
    assert_close(copies(method), averages[-1], rtol=1e-4)


def test_the_flattest_power_average_is_the_mean_of_all_iterates(make_method, make_data, make_trainer):
    watch, method = Watch(), make_method()
    make_trainer(EMA(power_std=12**-0.5), watch).fit(method, datamodule=make_data())
    for name, value in copies(method).items():
        mean = torch.stack([iterate[name].double() for iterate in watch.iterates[1:]]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-4, atol=1e-6)


def test_training_does_not_notice(make_method, make_data, make_trainer):
    watches = Watch(), Watch()
    for watch, callbacks in zip(watches, ([EMA(0.9)], []), strict=True):
        torch.manual_seed(0)
        method = Classification(Normalized(), optimizer=partial(torch.optim.Adam, lr=0.02))
        make_trainer(*callbacks, watch).fit(method, datamodule=make_data())
    for one, other in zip(watches[0].iterates, watches[1].iterates, strict=True):
        assert_equal(one, other)


# ---- dtypes, buffers, tied weights


def test_bfloat16_weights_have_a_float32_average(make_method, make_data, make_trainer, tmp_path):
    watch = Watch()
    trainer = make_trainer(EMA(0.99), watch, Save(), precision="bf16-true")
    trainer.fit(make_method(optimizer=partial(torch.optim.SGD, lr=0.01)), datamodule=make_data())
    checkpoint = torch.load(tmp_path / "save.ckpt", weights_only=True)
    expected = recursion(watch.iterates, lambda step: 0.99 if step > 1 else 0.0)[-1]
    for name, value in checkpoint["state_dict"].items():
        assert value.dtype == torch.float32
        assert checkpoint["current_model_state"][name].dtype == torch.bfloat16
        # far closer than bfloat16 can tell numbers apart, 2^-8
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_buffers(make_data, make_trainer, tmp_path, buffers):
    watch = Watch()
    torch.manual_seed(0)
    method = Classification(Normalized(), optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer(EMA(0.8, buffers=buffers), watch, Save())
    trainer.fit(method, datamodule=make_data())
    average = recursion(watch.iterates, lambda step: 0.8 if step > 1 else 0.0)
    for state in (watch.seen[18], torch.load(tmp_path / "save.ckpt", weights_only=True)["state_dict"], copies(method)):
        for name, value in state.items():
            raw = watch.iterates[18][name]
            if "num_batches_tracked" in name:
                assert value.dtype == torch.int64
                assert value.item() == 18
            elif "running" in name and buffers == "copy":
                assert torch.equal(value, raw)
            else:
                torch.testing.assert_close(value.double(), average[18][name], rtol=1e-4, atol=1e-6)
                assert not torch.equal(value, raw)


def test_tied_weights_are_averaged_once_and_restored_under_both_names(make_data, make_trainer, tmp_path):
    torch.manual_seed(0)
    watch, module = Watch(), Foreign()
    make_trainer(EMA(0.9), watch, Save()).fit(module, datamodule=make_data())
    expected = recursion(watch.iterates, lambda step: 0.9 if step > 1 else 0.0)
    for step, seen in watch.seen.items():
        assert_close(seen, expected[step])
    assert_close(copies(module), expected[-1])
    assert module.first.weight is module.second.weight
    checkpoint = torch.load(tmp_path / "save.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert torch.equal(checkpoint[key]["first.weight"], checkpoint[key]["second.weight"])
        assert checkpoint[key].keys() == module.state_dict().keys()
    assert_equal(checkpoint["current_model_state"], watch.iterates[-1])
    resumed, again = Watch(), Foreign()
    make_trainer(EMA(0.9), resumed, max_epochs=4).fit(again, datamodule=make_data(), ckpt_path=tmp_path / "save.ckpt")
    assert again.first.weight is again.second.weight
    assert_equal(resumed.iterates[0], watch.iterates[-1])


# ---- swapping


def bits(module):
    return [value.detach().view(torch.int32).tolist() for value in module.parameters()]


def test_swapping_twice_is_the_identity_bit_for_bit(make_trainer):
    ema, module, trainer = EMA(0.9), Foreign(), make_trainer()
    with torch.no_grad():
        module.first.bias.copy_(torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, 1.0, 1 / 3]))
    ema.on_fit_start(trainer, module)
    average = bits(module)
    with torch.no_grad():
        module.first.weight.add_(1e-3)
        module.second.bias.mul_(-0.0)
    weights = bits(module)
    assert weights != average
    for _ in range(2):
        ema.on_validation_start(trainer, module)
        assert bits(module) == average
        ema.on_validation_start(trainer, module)  # of a validation within another one's hooks
        assert bits(module) == average
        ema.on_validation_end(trainer, module)
        assert bits(module) == weights
        ema.on_validation_end(trainer, module)
        assert bits(module) == weights


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_the_weights_are_back_when_validation_raises(make_method, make_data, make_trainer, error):
    class Fails(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            if trainer.current_epoch == 1:
                raise error

    watch, method = Watch(), make_method()
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        make_trainer(EMA(0.9), watch, Fails()).fit(method, datamodule=make_data())
    assert not torch.equal(watch.seen[12]["network.head.weight"], watch.iterates[12]["network.head.weight"])
    assert_equal(copies(method), watch.iterates[12])


def test_sanity_validation_sees_the_plain_weights(make_method, make_data, make_trainer):
    watch = Watch()
    make_trainer(EMA(0.9), watch, num_sanity_val_steps=2).fit(make_method(), datamodule=make_data())
    assert_equal(watch.sanity, watch.iterates[0])


def test_the_optimizer_sees_the_weights_again_after_validation(make_method, make_data, make_trainer):
    class Before(Callback):
        def __init__(self):
            self.weights = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.weights[trainer.global_step] = copies(pl_module)

    watch, before = Watch(), Before()
    make_trainer(EMA(0.9), watch, before, val_check_interval=0.5).fit(make_method(), datamodule=make_data())
    assert list(watch.seen) == [3, 6, 9, 12, 15, 18]
    for step, weights in before.weights.items():
        assert_equal(weights, watch.iterates[step])


def test_a_checkpoint_taken_while_swapped_holds_both(make_method, make_data, make_trainer, tmp_path):
    class SaveInValidation(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            trainer.save_checkpoint(tmp_path / "swapped.ckpt", weights_only=False)

    watch = Watch()
    make_trainer(EMA(0.9), watch, SaveInValidation()).fit(make_method(), datamodule=make_data())
    checkpoint = torch.load(tmp_path / "swapped.ckpt", weights_only=True)
    assert_equal(checkpoint["state_dict"], watch.seen[18])
    assert_equal(checkpoint["current_model_state"], watch.iterates[18])


# ---- checkpoints


@pytest.mark.parametrize("callbacks", [lambda: [EMA(0.9)], list], ids=["EMA", "no EMA"])
def test_evaluations_from_a_checkpoint_use_the_average(make_method, make_data, make_trainer, tmp_path, callbacks):
    first = Watch()
    make_trainer(EMA(0.9), first, Save()).fit(make_method(), datamodule=make_data())
    path, average = tmp_path / "save.ckpt", first.seen[18]
    watch, method = Watch(), make_method()
    trainer = make_trainer(*callbacks(), watch)
    trainer.test(method, datamodule=make_data(), ckpt_path=path, verbose=False)
    assert_equal(watch.tested, average)
    trainer = make_trainer(*callbacks(), watch)
    trainer.validate(make_method(), datamodule=make_data(), ckpt_path=path, verbose=False)
    assert_equal(watch.seen[0], average)
    method = make_method()
    make_trainer(*callbacks()).predict(method, datamodule=make_data(), ckpt_path=path)
    assert_equal(copies(method), average)


def test_a_test_after_the_fit_uses_the_average(make_method, make_data, make_trainer):
    watch, method, data = Watch(), make_method(), make_data()
    trainer = make_trainer(EMA(0.9), watch)
    trainer.fit(method, datamodule=data)
    trainer.test(method, datamodule=data, verbose=False)
    assert_equal(watch.tested, watch.seen[18])


@pytest.mark.parametrize("cuts", [[2, 12], [4, 13, 14]])
@pytest.mark.parametrize(
    "arguments",
    [{"decay": 0.9}, {"decay": 0.99, "warmup": True, "every_n_steps": 4}, {"power_std": 0.1, "start_step": 3}],
    ids="-".join,
)
def test_a_cut_run_is_the_uninterrupted_one(run, assert_same_runs, arguments, cuts):
    # the last checkpoints are compared too: average, weights and the state of the optimizer, bit for bit
    def callbacks():
        return [EMA(**arguments)]

    assert_same_runs(run("cut", cuts, callbacks=callbacks), run("whole", callbacks=callbacks))


def test_a_cut_run_with_averaged_buffers_and_validations_within_epochs(run, assert_same_runs):
    arguments = {
        "callbacks": lambda: [EMA(0.9, buffers="average")],
        "method": lambda: Classification(Normalized(), optimizer=partial(torch.optim.Adam, lr=0.1)),
        "val_check_interval": 0.5,
        "num_sanity_val_steps": 1,
    }
    assert_same_runs(run("cut", [4, 12, 16], **arguments), run("whole", **arguments))


def test_resumed_without_an_average_it_starts_from_the_weights(make_method, make_data, make_trainer, tmp_path):
    first = Watch()
    make_trainer(first, Save(), max_epochs=1).fit(make_method(), datamodule=make_data())
    watch = Watch()
    trainer = make_trainer(EMA(0.9), watch, max_epochs=2)
    trainer.fit(make_method(), datamodule=make_data(), ckpt_path=tmp_path / "save.ckpt")
    assert_equal(watch.iterates[0], first.iterates[-1])
    averages = recursion(watch.iterates, lambda step: 0.9)
    assert_close(watch.seen[12], averages[-1], rtol=1e-4)


def test_a_second_fit_starts_anew(make_method, make_data, make_trainer):
    ema, method, data = EMA(0.9), make_method(), make_data()
    make_trainer(ema, max_epochs=1).fit(method, datamodule=data)
    start, watch = copies(method), Watch()
    make_trainer(ema, watch, max_epochs=1).fit(method, datamodule=data)
    assert_equal(watch.iterates[0], start)
    averages = recursion(watch.iterates, lambda step: 0.9 if step > 1 else 0.0)
    assert_close(copies(method), averages[-1], rtol=1e-4)


def test_a_module_that_loads_loosely_can_be_resumed(make_data, make_trainer, tmp_path):
    class Grown(Foreign):
        def __init__(self):
            super().__init__()
            self.register_buffer("more", torch.ones(1))
            self.strict_loading = False

    make_trainer(EMA(0.9), Save(), max_epochs=1).fit(Foreign(), datamodule=make_data())
    trainer = make_trainer(EMA(0.9), max_epochs=2)
    trainer.fit(Grown(), datamodule=make_data(), ckpt_path=tmp_path / "save.ckpt")
    assert trainer.global_step == 12


# ---- errors


def test_two_averages_are_refused(make_method, make_data, make_trainer):
    with pytest.raises(MisconfigurationException, match="there are two EMA callbacks"):
        make_trainer(EMA(0.9), EMA(0.99)).fit(make_method(), datamodule=make_data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.1}, r"decay must lie in \[0, 1\], got 1.1"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\], got -0.1"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"buffers": "keep"}, "buffers must be 'copy' or 'average', got 'keep'"),
        ({"power_std": 0.5}, r"std must lie in \(0, 0\.2887\], got 0.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)
