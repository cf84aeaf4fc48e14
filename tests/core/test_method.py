import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from leyden.callbacks import EMA, ExactResume, LastCheckpoint
from leyden.core import Method, MethodCallback, NonFiniteLossError, Outputs
from leyden.data import DataModule, Sequential
from leyden.data.dataset import TensorDictDataset
from leyden.methods import Classification
from leyden.models import MLP
from leyden.optim import WarmupCosine

LAST = "checkpoints/last.ckpt"


class Blobs(DataModule):
    """24 samples to train on, 7 to validate, in order: what a fit does can be computed by hand."""

    num_classes = 3

    def __init__(self, batch_size=8, **kwargs):
        super().__init__(batch_size, order=Sequential(), seed=0, **{"eval_batch_size": 4, **kwargs})

    def datasets(self):
        generator = torch.Generator().manual_seed(0)
        data = {}
        for name, size in {"train": 24, "val": 7, "test": 5}.items():
            target = torch.arange(size) % 3
            x = torch.randn(size, 4, generator=generator) + 2 * functional.one_hot(target, 4)
            data[name] = TensorDictDataset({"input": x, "target": target})
        return data


class ListLogger(Logger):
    def __init__(self):
        super().__init__()
        self.lines = []

    name = "list"
    version = 0

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))


SGD = partial(torch.optim.SGD, lr=0.1)


def make(optimizer=SGD, hidden=(), **kwargs):
    torch.manual_seed(0)
    return Classification(MLP(4, 3, hidden), optimizer=optimizer, **kwargs)


def trainer(*callbacks, folder=None, **kwargs):
    return Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
        callbacks=[*callbacks] if folder is None else [ExactResume(), *callbacks, LastCheckpoint()],
        **{"max_epochs": 1, "logger": False, **kwargs},
    )


def fit(method, *callbacks, data=None, ckpt_path=None, **kwargs):
    run = trainer(*callbacks, **kwargs)
    run.fit(method, datamodule=data or Blobs(), ckpt_path=ckpt_path)
    return run


# ---- the step


def test_a_fit_is_the_plain_loop():
    method = make()
    twin = make().network
    optimizer = SGD(twin.parameters())
    for batch in torch.arange(24).split(8):
        data = Blobs().dataset("train").__getitems__(batch.tolist())
        optimizer.zero_grad()
        functional.cross_entropy(twin(data["input"]), data["target"]).backward()
        optimizer.step()
    fit(method)
    assert all(map(torch.equal, method.network.parameters(), twin.parameters()))


class Diary(MethodCallback):
    """Notes the calls of its doors, scales the input, and adds a term."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def transform_batch(self, method, batch):
        self.calls.append(f"{self.name} transforms")
        return {**batch, "input": 2 * batch["input"]}

    def loss_terms(self, method, batch, outputs, terms):
        self.calls.append(f"{self.name} sees {sorted(terms)} of {float(batch['input'].sum()):.0f}")
        return terms | {self.name: outputs.logits.sum() * 0 + 1.0}


def test_doors_open_in_the_order_of_the_callbacks_and_in_training_only():
    calls = []
    method = make()
    compute = method.compute
    method.compute = lambda batch: calls.append("computes") or compute(batch)
    data = Blobs(24)
    total = 4 * data.dataset("train").tensors["input"].sum()
    fit(method, Diary("first", calls), Diary("second", calls), data=data)
    assert calls == [
        "first transforms",
        "second transforms",
        "computes",
        f"first sees ['task'] of {total:.0f}",
        f"second sees ['first', 'task'] of {total:.0f}",
        "computes",  # validation, two batches
        "computes",
    ]


def test_doors_are_looked_up_anew_in_each_fit():
    calls, method = [], make()
    fit(method, Diary("first", calls))
    fit(method)
    assert len(calls) == 3 * 2


def test_a_callback_may_replace_and_rescale_terms():
    class Only(MethodCallback):
        def loss_terms(self, method, batch, outputs, terms):
            return {"half": 0.5 * terms["task"]}

    halved, slow = make(), make(partial(torch.optim.SGD, lr=0.05))
    fit(halved, Only())
    fit(slow)
    for p, q in zip(halved.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_reparametrised_weights_are_computed_once_a_step():
    class Count(nn.Module):
        calls = 0

        def forward(self, weight):
            Count.calls += 1
            return weight

    class ReadsAgain(MethodCallback):
        def loss_terms(self, method, batch, outputs, terms):
            return terms | {"decay": method.network.head.weight.square().sum()}

    method = make()
    parametrize.register_parametrization(method.network.head, "weight", Count())
    Count.calls = 0
    fit(method, ReadsAgain(), limit_val_batches=0)
    assert Count.calls == 3


def test_taps_are_handed_to_the_step():
    class Reads(MethodCallback):
        seen = []

        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            pl_module.taps.add("network.head")

        def loss_terms(self, method, batch, outputs, terms):
            self.seen.append(outputs.taps["network.head"] is outputs.logits)
            return terms

    fit(make(), Reads())
    assert Reads.seen == [True] * 3


def test_predictions_say_whose_they_are():
    method, data = make(), Blobs()
    batches = trainer().predict(method, datamodule=data)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(
        torch.cat([batch["output"] for batch in batches]), method.network(data.dataset("test").tensors["input"])
    )


def test_compute_or_loss_terms_must_be_written():
    with pytest.raises(TypeError, match="loss_terms"):
        Method(MLP(4, 3, ()))


# ---- what is logged


def test_logged_steps_and_epoch_means():
    class Pull(MethodCallback):
        seen = []

        def loss_terms(self, method, batch, outputs, terms):
            terms = terms | {"pull": 0.1 * outputs.logits.square().mean()}
            self.seen.append({name: term.item() for name, term in terms.items()})
            return terms

    logger, pull = ListLogger(), Pull()
    fit(make(), pull, logger=logger, log_every_n_steps=2, max_epochs=2)
    steps = {step: line for step, line in logger.lines if "train/task" in line}
    assert list(steps) == [1, 3, 5]
    for step, line in steps.items():
        assert line["train/task"] == pull.seen[step]["task"]
        assert line["train/loss"] == pytest.approx(sum(pull.seen[step].values()))
    epochs = [(step, line) for step, line in logger.lines if "train/loss_epoch" in line]
    assert [(step, line["epoch"]) for step, line in epochs] == [(2, 0), (5, 1)]
    for number, (_, line) in enumerate(epochs):
        seen = pull.seen[3 * number : 3 * number + 3]
        for name in ("task", "pull"):
            assert line[f"train/{name}_epoch"] == pytest.approx(math.fsum(s[name] for s in seen) / 3, rel=1e-12)
        assert line["train/loss_epoch"] == pytest.approx(math.fsum(sum(s.values()) for s in seen) / 3)


def test_a_step_that_is_not_written_logs_nothing():
    method, calls = make(), []
    log = method.log_dict
    method.log_dict = lambda metrics, **kwargs: calls.append(list(metrics)) or log(metrics, **kwargs)
    fit(method, log_every_n_steps=3, max_epochs=2)
    assert calls.count(["train/loss"]) == 2


def test_smaller_batches_weigh_less():
    method, data = make(), Blobs(16, drop_last=False)
    run = fit(method, data=data, max_epochs=1, logger=False)
    network = make().network  # SGD by hand over 16 and 8 samples
    losses, optimizer = [], SGD(network.parameters())
    for rows in (range(16), range(16, 24)):
        batch = data.dataset("train").__getitems__(list(rows))
        loss = functional.cross_entropy(network(batch["input"]), batch["target"])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert run.callback_metrics["train/loss_epoch"].item() == pytest.approx((2 * losses[0] + losses[1]) / 3)


def test_validation_counts_every_sample_alike():
    method, data = make(), Blobs()
    [result] = trainer().validate(method, datamodule=data, verbose=False)
    tensors = data.dataset("val").tensors
    logits = method.network(tensors["input"])
    assert result["val/loss"] == pytest.approx(functional.cross_entropy(logits, tensors["target"]).item())
    assert result["val/accuracy"] == pytest.approx((logits.argmax(-1) == tensors["target"]).double().mean().item())


# ---- attached modules


def test_attached_modules_are_trained_at_their_rate():
    method = make()
    head = method.attach("head", nn.Linear(2, 2), lr_scale=0.1)
    method.attach("other", nn.Linear(2, 2, bias=False))
    method.attach("empty", nn.ReLU())
    groups = method.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == [0.1, pytest.approx(0.01), 0.1]
    assert [len(group["params"]) for group in groups] == [2, 2, 1]
    assert groups[1]["params"][0] is head.weight
    assert {"attached.head.weight", "attached.other.weight"} < set(method.state_dict())


def test_the_same_module_may_be_attached_again_but_no_other_of_its_name():
    method = make()
    head = method.attach("head", nn.Linear(2, 2))
    assert method.attach("head", head, lr_scale=2.0) is head
    assert method.configure_optimizers().param_groups[1]["lr"] == 0.2
    with pytest.raises(ValueError, match="there is an attached module 'head' already"):
        method.attach("head", nn.Linear(2, 2))


def test_what_needs_no_gradient_is_not_optimised():
    method = make()
    method.network.head.bias.requires_grad_(False)
    method.attach("frozen", nn.Linear(2, 2).requires_grad_(False))
    [group] = method.configure_optimizers().param_groups
    assert [p is method.network.head.weight for p in group["params"]] == [True]


# ---- frozen modules


def test_frozen_modules_stand_outside():
    method = make()
    names = set(method.state_dict())
    teacher = method.attach_frozen("teacher", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert set(method.state_dict()) == names
    ours = {id(p) for p in teacher.parameters()}
    assert not ours & {id(p) for p in method.parameters()}
    assert not ours & {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module is teacher for module in method.modules())


def test_frozen_modules_stay_in_eval_mode_and_are_moved():
    method = make()
    teacher = method.attach_frozen("teacher", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    method.train()
    assert not any(module.training for module in teacher.modules())
    method.to(torch.float64)
    assert teacher[0].weight.dtype == teacher[1].running_mean.dtype == torch.float64
    method.half()
    assert teacher[0].weight.dtype == torch.float16
    method.to("meta")
    assert teacher[0].weight.device.type == "meta"


def test_a_frozen_name_is_taken_once():
    method = make()
    teacher = method.attach_frozen("teacher", nn.Linear(2, 2))
    assert method.attach_frozen("teacher", teacher) is teacher
    with pytest.raises(ValueError, match="there is a frozen module 'teacher' already"):
        method.attach_frozen("teacher", nn.Linear(2, 2))


@pytest.mark.parametrize("save", [True, False])
def test_frozen_modules_are_saved_if_asked(tmp_path, save):
    class Teacher(MethodCallback):
        def __init__(self, value):
            self.module = nn.Linear(2, 2)
            nn.init.constant_(self.module.weight, value)

        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            pl_module.attach_frozen("teacher", self.module, save=save)

    fit(make(), Teacher(1.0), folder=tmp_path)
    second = Teacher(2.0)
    fit(make(), second, folder=tmp_path, ckpt_path=tmp_path / LAST, max_epochs=2)
    assert second.module.weight.eq(1.0 if save else 2.0).all()


# ---- the optimizer and its schedule


@pytest.mark.parametrize(("accumulate", "epochs", "steps"), [(1, 2, 6), (2, 2, 4), (1, 5, 15)])
def test_total_steps_is_filled_in(accumulate, epochs, steps):
    method = make(scheduler=WarmupCosine)
    data = Blobs(8 if accumulate == 1 else 12)
    fit(method, data=data, max_epochs=epochs, accumulate_grad_batches=accumulate)
    assert method.lr_schedulers().total_steps == steps
    assert method.lr_schedulers().last_epoch == method.global_step == steps


def test_total_steps_given_is_kept():
    method = make(scheduler=partial(WarmupCosine, total_steps=50))
    fit(method)
    assert method.lr_schedulers().total_steps == 50


def test_a_schedule_without_total_steps_gets_none():
    method = make(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    fit(method)
    assert method.optimizers().param_groups[0]["lr"] == 0.1 * 0.5**3  # stepped after every optimizer step


def test_an_endless_fit_has_no_total_steps():
    with pytest.raises(MisconfigurationException, match="needs total_steps, which an endless fit does not have"):
        fit(make(scheduler=WarmupCosine), max_epochs=-1)


# ---- the stop at a bad loss


class Poison(MethodCallback):
    """Makes its term NaN in one step."""

    def __init__(self, at):
        self.at = at

    def loss_terms(self, method, batch, outputs, terms):
        factor = float("nan") if method.global_step == self.at else 1.0
        return terms | {"pull": factor * outputs.logits.square().mean()}


def test_the_stop_names_term_step_and_checkpoint_and_saves_no_more(tmp_path):
    method, run = make(), trainer(Poison(4), folder=tmp_path, max_epochs=2)
    before = {}

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    run.callbacks.insert(1, Keep())
    message = rf"not finite in step 4: term 'pull'; last good checkpoint: {tmp_path}/{LAST}"
    with pytest.raises(NonFiniteLossError, match=message):
        run.fit(method, datamodule=Blobs())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())  # no step was made
    with pytest.raises(NonFiniteLossError, match=message):
        run.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_the_stop_before_the_first_checkpoint_says_so():
    with pytest.raises(NonFiniteLossError, match="step 1: term 'pull'; no checkpoint was saved yet"):
        fit(make(), Poison(1))


def test_a_run_goes_on_from_its_last_good_checkpoint(tmp_path):
    method = make()
    with pytest.raises(NonFiniteLossError):
        fit(method, Poison(4), folder=tmp_path, max_epochs=2)
    fit(method, Poison(-1), folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / LAST)
    assert method.global_step == 6


def test_a_new_fit_begins_afresh_after_a_stop():
    method = make()
    with pytest.raises(NonFiniteLossError):
        fit(method, Poison(1))
    fit(method)


def test_a_new_fit_counts_only_its_own_terms():
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                raise KeyError("broken off")

    method, twin = make(), make()
    with pytest.raises(KeyError):
        fit(method, Break())
    twin.load_state_dict(method.state_dict())
    means = [fit(m).callback_metrics["train/loss_epoch"].item() for m in (method, twin)]
    assert means[0] == means[1]


# ---- resume: what is typed last wins


class Watch(Callback):
    def __init__(self):
        self.groups = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.groups.append([dict(group) for group in trainer.optimizers[0].param_groups])

    def column(self, key, group=0):
        return [groups[group][key] for groups in self.groups]


def resume(folder, before, after, *callbacks, epochs=2):
    """One epoch of three steps as ``before``, then on as ``after``."""
    fit(make(**before), *callbacks, folder=folder)
    watch = Watch()
    method = make(**after)
    fit(method, *callbacks, watch, folder=folder, max_epochs=epochs, ckpt_path=folder / LAST)
    assert method.global_step == 3 * epochs
    assert len(watch.groups) == 3 * (epochs - 1)
    return watch


def sgd(**kwargs):
    return {"optimizer": partial(torch.optim.SGD, **{"lr": 0.1, **kwargs})}


def cosine(step, total):
    return 0.5 * (1 + math.cos(math.pi * step / total))


def warmup_cosine(**kwargs):
    return {"scheduler": partial(WarmupCosine, **{"warmup": 0, "total_steps": 10, **kwargs})}


@pytest.mark.parametrize(
    ("before", "after", "key", "expected"),
    [
        ({}, {}, "lr", 0.1),
        ({"lr": 0.1}, {"lr": 0.4}, "lr", 0.4),
        ({"lr": 0.0}, {"lr": 0.4}, "lr", 0.4),
        ({"lr": 0.4}, {"lr": 0.0}, "lr", 0.0),
        ({}, {"weight_decay": 0.5}, "weight_decay", 0.5),
        ({"weight_decay": 0.5}, {}, "weight_decay", 0),
        ({"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}, "momentum", 0.5),
        ({"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}, "nesterov", True),
    ],
)
def test_arguments_of_the_optimizer(tmp_path, before, after, key, expected):
    assert resume(tmp_path, sgd(**before), sgd(**after)).column(key) == [expected] * 3


def test_the_state_of_the_optimizer_is_kept(tmp_path):
    fit(make(**sgd(momentum=0.9)), folder=tmp_path)
    saved = torch.load(tmp_path / LAST, weights_only=True)["optimizer_states"][0]["state"][0]["momentum_buffer"]
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(next(iter(trainer.optimizers[0].state.values()))["momentum_buffer"].clone())

    fit(make(**sgd(momentum=0.5)), Look(), folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / LAST)
    assert torch.equal(seen[0], saved)


def test_what_training_itself_changed_is_kept_unless_typed_anew(tmp_path):
    class Decays(Callback):  # a schedule of another knob
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.3

    kept = resume(tmp_path / "a", sgd(weight_decay=0.1), sgd(weight_decay=0.1, momentum=0.5), Decays())
    assert kept.column("weight_decay") == [0.3] * 3
    typed = resume(tmp_path / "b", sgd(weight_decay=0.1), sgd(weight_decay=0.2), Decays())
    assert typed.column("weight_decay") == [0.2] * 3


def test_a_changed_rate_keeps_the_place_in_the_schedule(tmp_path):
    watch = resume(tmp_path, sgd(lr=0.1) | warmup_cosine(), sgd(lr=0.4) | warmup_cosine())
    assert watch.column("lr") == pytest.approx([0.4 * cosine(step, 10) for step in (3, 4, 5)])


def test_a_changed_rate_reaches_attached_parts(tmp_path):
    class Part(MethodCallback):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            pl_module.attach("part", nn.Linear(1, 1), lr_scale=0.5)

    for schedule in ({}, warmup_cosine(min_lr_ratio=1.0)):
        watch = resume(tmp_path / str(len(schedule)), sgd(lr=0.1) | schedule, sgd(lr=0.4) | schedule, Part())
        assert watch.column("lr", 0) == pytest.approx([0.4] * 3)
        assert watch.column("lr", 1) == pytest.approx([0.2] * 3)


def by_name(decay, scale, pattern="network.head.*"):
    return {"param_groups": {"*.bias": {"weight_decay": decay}, pattern: {"lr_scale": scale}}}


def test_parameter_groups_go_on_with_new_values(tmp_path):
    before, after = sgd(weight_decay=0.3) | by_name(0.0, 1.0), sgd(weight_decay=0.3) | by_name(0.2, 0.5)
    watch = resume(tmp_path, before, after)
    assert watch.column("weight_decay", 0) == [0.3] * 3
    assert watch.column("weight_decay", 1) == [0.2] * 3
    assert watch.column("lr") == [0.05] * 3


def test_other_parameter_groups_are_refused(tmp_path):
    message = "the checkpoint has the state of other parameter groups"
    with pytest.raises(MisconfigurationException, match=message):
        resume(tmp_path / "a", sgd(), sgd() | by_name(0.0, 1.0))
    deep = {"hidden": (4, 4)} | sgd()  # two layers of the same shapes, one of them apart
    with pytest.raises(MisconfigurationException, match=message):
        resume(tmp_path / "b", deep | by_name(0.0, 0.5, "*.0.weight"), deep | by_name(0.0, 0.5, "*.3.weight"))


def test_arguments_of_the_schedule(tmp_path):
    watch = resume(tmp_path, warmup_cosine(), warmup_cosine(total_steps=20, min_lr_ratio=0.5))
    # the first step was planned before the run was cut
    assert watch.column("lr")[1:] == pytest.approx([0.1 * (0.5 + 0.5 * cosine(step, 20)) for step in (4, 5)])


def test_a_longer_fit_stretches_the_schedule(tmp_path):
    filled_in = warmup_cosine(total_steps=None)
    watch = resume(tmp_path, filled_in, filled_in, epochs=3)
    assert watch.column("lr")[1:] == pytest.approx([0.1 * cosine(step, 9) for step in (4, 5, 6, 7, 8)])


def test_a_longer_fit_stretches_the_schedule_from_its_first_step(tmp_path):
    filled_in = warmup_cosine(total_steps=None)
    assert resume(tmp_path, filled_in, filled_in).column("lr")[0] == pytest.approx(0.1 * cosine(3, 6))


def test_a_schedule_may_be_added_or_removed(tmp_path):
    removed = resume(tmp_path / "a", warmup_cosine(), {})
    assert removed.column("lr") == [0.1] * 3
    added = resume(tmp_path / "b", {}, warmup_cosine())
    assert added.column("lr") == pytest.approx([0.1 * cosine(step, 10) for step in (0, 1, 2)])


# ---- checkpoints that do not fit


@pytest.mark.parametrize(
    ("saved", "here", "message"),
    [
        ((8,), (9,), r"'network\.body\.0\.weight' has shape \(8, 4\) in the checkpoint and \(9, 4\) in the model"),
        ((), (8,), r"the checkpoint lacks 'network\.body\.0\.weight' of the model"),
        ((8,), (), r"'network\.head\.weight' has shape \(3, 8\) in the checkpoint and \(3, 4\) in the model"),
        ((8, 8), (8,), r"the model lacks 'network\.body\.3\.weight' of the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, saved, here, message):
    fit(make(hidden=saved), folder=tmp_path)
    with pytest.raises(MisconfigurationException, match=rf"the checkpoint does not fit the model: {message}"):
        fit(make(hidden=here), folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / LAST)


class Part(MethodCallback):
    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        pl_module.attach("part", nn.Linear(1, 1))


def test_attached_parts_are_needed_to_train_on_but_not_to_test(tmp_path):
    fit(make(), Part(), EMA(0.5), folder=tmp_path)
    method = make()
    trainer().test(method, datamodule=Blobs(), ckpt_path=tmp_path / LAST, verbose=False)
    loaded = Classification.load_from_checkpoint(tmp_path / LAST, network=MLP(4, 3, ()), weights_only=True)
    assert torch.equal(loaded.network.head.weight, method.network.head.weight)
    with pytest.raises(MisconfigurationException, match=r"the model lacks 'attached\.part\.weight' of the checkpoint"):
        fit(make(), folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / LAST)


def test_tests_with_and_without_the_average_read_the_same_weights(tmp_path):
    method = make()
    fit(method, EMA(0.5), folder=tmp_path)
    for callbacks in ([], [EMA(0.5)]):
        other = make()
        trainer(*callbacks).test(other, datamodule=Blobs(), ckpt_path=tmp_path / LAST, verbose=False)
        assert torch.equal(other.network.head.weight, method.network.head.weight)


def test_a_checkpoint_of_plain_lightning_is_loaded(tmp_path):
    fit(make(), folder=tmp_path)
    checkpoint = torch.load(tmp_path / LAST, weights_only=True)
    del checkpoint["method"]
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    method = make()
    fit(method, folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / "plain.ckpt")
    assert method.global_step == 6


def test_there_is_no_datamodule_without_a_trainer():
    assert make().datamodule is None


def test_lightnings_attribute_keeps_its_value():
    method = make()
    method._current_fx_name = "training_step"
    assert method._current_fx_name == "training_step"
    assert "_current_fx_name" in vars(method)


def test_outputs_of_a_method_of_another_shape_are_enough():
    """A method may override `compute` alone."""

    class Doubled(Classification):
        def compute(self, batch):
            return Outputs(logits=2 * self.network(batch["input"]))

    torch.manual_seed(0)
    method = Doubled(MLP(4, 3, ()), optimizer=SGD)
    fit(method)
    assert not torch.equal(method.network.head.weight, make().network.head.weight)
