import random
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint

from leyden.callbacks import EMA, ExactResume
from leyden.data import Weighted
from leyden.optim import WarmupCosine
from leyden.plugins import CSVLogger

CUTS = {
    "first epoch": [2],
    "first edge": [6],
    "third epoch": [15],
    "third edge": [18],
    "three times": [4, 13, 14],
    "three edges": [6, 12, 18],
    "before the last step": [23],
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_a_cut_run_is_the_uninterrupted_one(run, assert_same_runs, cuts):
    whole = run("whole")
    assert len(whole.diary.steps) == 24
    assert len({note["generators"] for note in whole.diary.steps.values()}) == 24
    assert_same_runs(run("cut", cuts), whole)


@pytest.mark.parametrize("cuts", [[2], [15], [4, 13, 23]])
@pytest.mark.parametrize("every_n_steps", [0, 4])
def test_steps_after_the_last_checkpoint_are_made_again(run, assert_same_runs, cuts, every_n_steps):
    whole, cut = run("whole", every_n_steps=every_n_steps), run("cut", cuts, every_n_steps=every_n_steps)
    assert_same_runs(cut, whole)


@pytest.mark.parametrize("cuts", [[6], [4, 12, 17]])
def test_max_steps_after_an_epochs_end(run, assert_same_runs, cuts):
    arguments = {"max_epochs": -1, "max_steps": 20}
    assert_same_runs(run("cut", cuts, **arguments), run("whole", **arguments))


@pytest.mark.parametrize("cuts", [[3], [4, 11, 17]])
@pytest.mark.parametrize(
    "arguments",
    [
        {"val_check_interval": 0.5},
        {"check_val_every_n_epoch": 2},
        {"accumulate_grad_batches": 2},
        {"max_epochs": -1, "max_steps": 20},
        {"num_sanity_val_steps": 2},
        {"data": {"order": Weighted(torch.arange(1.0, 49.0)), "drop_last": False}, "batch_size": 10},
        {"limit_train_batches": 5},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_in_other_trainers(run, assert_same_runs, arguments, cuts):
    assert_same_runs(run("cut", cuts, **arguments), run("whole", **arguments))


@pytest.mark.parametrize("cuts", [[12], [4, 13, 14]])
def test_with_a_schedule_that_needs_total_steps(run, make_method, assert_same_runs, cuts):
    # to count the steps, the loader is made before the checkpoint's loops are restored
    method = partial(make_method, scheduler=WarmupCosine)
    whole = run("whole", method=method)
    rates = [note["lr"] for note in whole.diary.steps.values()]
    assert len(set(rates)) > 20
    assert rates[-1] < 0.01 * max(rates)
    assert_same_runs(run("cut", cuts, method=method), whole)


class Resize(Callback):
    """Sets the batch size after given steps."""

    def __init__(self, sizes):
        self.sizes = sizes

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.sizes:
            trainer.datamodule.set_batch_size(self.sizes[trainer.global_step])


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ({2: 4}, [2, 4, 5]),  # 10 steps in the first epoch and 12 in each that follows, once they were 6
        ({2: 4}, [10, 11, 22]),
        ({2: 16}, [2, 3, 4]),  # 4 steps in the first epoch and 3 in each that follows
        ({2: 16}, [4, 6, 7]),
        ({5: 4, 9: 16}, [5, 7, 9]),
        ({2: 4}, [6, 9]),
        ({5: 4, 9: 16}, [6]),
    ],
)
def test_goes_on_with_the_size_of_the_batches(run, assert_same_runs, sizes, cuts):
    def callbacks():
        return [Resize(sizes)]

    whole = run("whole", callbacks=callbacks, max_epochs=3)
    assert_same_runs(run("cut", cuts, callbacks=callbacks, max_epochs=3), whole)


@pytest.mark.parametrize("cut", [9, 12])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (1, 4)])
def test_goes_on_with_other_accumulation(run, before, after, cut):
    whole = run("whole", accumulate_grad_batches=before)
    other = run("cut", [cut], accumulate_grad_batches=[before, after])
    assert other.trainer.global_step == whole.trainer.global_step == 24

    # the resumed part has micro-batches of another size: what each epoch saw, in its order
    head = {key: note for key, note in other.diary.steps.items() if len(note["index"]) == 8 // before}
    tail = {key: note for key, note in other.diary.steps.items() if len(note["index"]) == 8 // after}
    for epoch in range(4):
        expected = [i for note in whole.diary.steps.values() if note["epoch"] == epoch for i in note["index"]]
        got = [i for part in (head, tail) for note in part.values() if note["epoch"] == epoch for i in note["index"]]
        assert got == expected
    # the batches of an epoch are counted on
    numbers = [batch_idx for (_, batch_idx), note in tail.items() if note["epoch"] == 3]
    assert numbers == list(range(6 * after))
    assert list(other.diary.validations) == [6, 12, 18, 24]


def test_the_mean_loss_of_a_cut_epoch_is_that_of_the_whole_epoch(run):
    whole, cut = run("whole"), run("cut", [9, 16])
    for one in (whole, cut):
        header, *rows = [line.split(",") for line in one.log.splitlines()]
        column = header.index("train/loss_epoch")
        means = [float(row[column]) for row in rows if row[column]]
        losses = [note["loss"] for note in one.diary.steps.values()]
        expected = [np.mean(losses[start : start + 6]) for start in range(0, 24, 6)]
        np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert whole.log == cut.log


def test_a_finished_run_can_be_prolonged(run, make_method, make_data, make_trainer):
    first, whole = run("first", max_epochs=2), run("whole", max_epochs=4)
    method = make_method()
    make_trainer(ExactResume(), max_epochs=4).fit(method, datamodule=make_data(), ckpt_path=first.last)
    assert torch.equal(method.network.head.weight, whole.method.network.head.weight)


def test_the_checkpoint_holds_plain_values_only(run):
    checkpoint = torch.load(run("whole", max_epochs=1, callbacks=lambda: [EMA()]).last, weights_only=True)
    (states,) = checkpoint["random_states"]
    assert set(states) == {"torch", "cuda", "numpy", "random"}
    assert checkpoint["accumulate_grad_batches"] == 1


def test_random_states_round_trip(make_method, make_data, make_trainer, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            self.drawn = draw()

    class Compare(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.drawn = draw()

    def draw():
        return torch.rand(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()  # noqa: NPY002

    np.random.randn(1)  # noqa: NPY002  # leaves half of a pair for the next draw
    random.gauss(0, 1)
    save, compare = Save(), Compare()
    make_trainer(ExactResume(), save, max_steps=1).fit(make_method(), datamodule=make_data())
    torch.manual_seed(9), np.random.seed(9), random.seed(9)  # noqa: NPY002
    trainer = make_trainer(ExactResume(), compare, max_steps=2)
    trainer.fit(make_method(), datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")
    assert compare.drawn == save.drawn


def test_states_of_more_processes_are_refused_with_a_warning(run, make_method, make_data, make_trainer):
    first = run("first", max_epochs=1)
    checkpoint = torch.load(first.last, weights_only=True)
    checkpoint["random_states"] *= 2
    torch.save(checkpoint, first.last)
    trainer = make_trainer(ExactResume(), max_epochs=2)
    with pytest.warns(UserWarning, match="saved by 2 processes and goes on with 1"):
        trainer.fit(make_method(), datamodule=make_data(), ckpt_path=first.last)
    assert trainer.global_step == 12


def test_a_new_run_of_one_process_keeps_its_random_numbers(make_method, make_data, make_trainer):
    weights = []
    for callbacks in ([], [ExactResume()]):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
        method = make_method()
        make_trainer(*callbacks, max_epochs=1).fit(method, datamodule=make_data())
        weights.append(method.network.head.weight)
    assert torch.equal(*weights)


def test_an_evaluation_from_a_checkpoint_leaves_a_later_fit_alone(run, make_method, make_data, make_trainer):
    """The states that an evaluation read are not put back by the next fit."""
    first = run("first", max_epochs=1)
    weights = []
    for evaluate in (False, True):
        trainer = make_trainer(ExactResume(), max_epochs=1)
        torch.manual_seed(0)
        method = make_method()
        if evaluate:
            trainer.test(make_method(), datamodule=make_data(), ckpt_path=first.last, verbose=False)
        torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
        trainer.fit(method, datamodule=make_data())
        weights.append(method.network.head.weight)
    assert torch.equal(*weights)


class AfterValidation(Checkpoint):
    """Saves when a validation ends, within the last batch before it, as `ModelCheckpoint` does with the best epoch."""

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(trainer.default_root_dir + f"/{trainer.global_step}.ckpt")


@pytest.mark.parametrize(
    ("at", "arguments"), [(3, {"val_check_interval": 0.5}), (12, {}), (15, {"val_check_interval": 0.5})]
)
def test_goes_on_from_a_checkpoint_of_a_validation(run, make_method, make_data, make_trainer, at, arguments):
    whole = run("whole", callbacks=lambda: [AfterValidation()], **arguments)
    diary = type(whole.diary)()
    torch.manual_seed(7)
    logger = CSVLogger(str(whole.folder))
    trainer = make_trainer(ExactResume(), diary, max_epochs=4, logger=logger, **arguments)
    method = make_method()
    trainer.fit(method, datamodule=make_data(), ckpt_path=whole.folder / f"{at}.ckpt")
    assert trainer.global_step == 24
    assert diary.steps == {key: note for key, note in whole.diary.steps.items() if key[0] > at}
    assert torch.equal(method.network.head.weight, whole.method.network.head.weight)
    # the means of the finished epoch may be there twice: they were logged after the checkpoint, for the same step
    rows = (whole.folder / "metrics.csv").read_text().splitlines()
    assert list(dict.fromkeys(rows)) == whole.log.splitlines()
